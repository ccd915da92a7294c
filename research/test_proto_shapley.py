"""Tests by enumeration. Run: pytest -q test_proto_shapley.py"""
import math, itertools, pytest, torch
from proto_shapley import *
from stress import enum
torch.set_num_threads(2)
def gens(n,seed=0): return [torch.Generator().manual_seed(seed*1000+i) for i in range(n)]
def game(scale=.5,P=9,K=12,B=4,big=0.,dtype=torch.float64,seed=0):
    g=torch.Generator().manual_seed(seed); y0=torch.randn(B,K,generator=g,dtype=dtype); a=scale*torch.randn(B,P,K,generator=g,dtype=dtype)
    t=torch.arange(B)%K
    a[torch.arange(B),2,t]+=big
    return y0,a,t
def exact(y0,a,t,utility):
    own=a.gather(2,t[:,None,None].expand(-1,a.shape[1],1))[:,:,0]
    lg,lp=enum(y0-y0.gather(1,t[:,None]),a-own[:,:,None])
    return {"logit":own.double(),"softmax":lp,"log-softmax":lg,"rest":own+lg}[utility]
UT=("logit","softmax","log-softmax","rest")

@pytest.mark.parametrize("probability",(False,True))
@pytest.mark.parametrize("leaders",(0,1,2))
def test_values_are_those_of_the_surrogate(probability,leaders):
    """Enumerate the surrogate itself through `taylor`: its values must be `values()`."""
    y0,a,t=game(P=7,B=2); own=a.gather(2,t[:,None,None].expand(-1,7,1))
    s=Surrogate(y0-y0.gather(1,t[:,None]),a-own,leaders,probability)
    P=7; Q=P-leaders; worth=torch.zeros(2,2**P,dtype=torch.float64)
    for n in range(2**P):
        S=torch.tensor([(n>>i)&1 for i in range(P)],dtype=torch.bool)
        for b in range(2):
            state=sum(int(S[s.leader[b,k]])<<k for k in range(leaders)); m=int((S&~s.is_leader[b]).sum())
            eta=s.deviations[b][S].sum(0); j=state*(Q+1)+m
            worth[b,n]=taylor(s.value[b,j],s.chance[b,j],eta,probability)
    phi=torch.zeros(2,P,dtype=torch.float64)
    for i in range(P):
        for n in range(2**P):
            if not (n>>i)&1:
                k=bin(n).count("1"); phi[:,i]+=math.factorial(k)*math.factorial(P-1-k)/math.factorial(P)*(worth[:,n|1<<i]-worth[:,n])
    torch.testing.assert_close(s.values(),phi,atol=1e-11,rtol=1e-9)

@pytest.mark.parametrize("utility",UT)
@pytest.mark.parametrize("leaders",(0,1,2))
def test_all_orders_give_the_shapley_value(utility,leaders):
    """Unbiased: the mean over all orders of 6 players is the exact value, and so is the sum."""
    y0,a,t=game(scale=1.5,P=6,B=2)
    own=a.gather(2,t[:,None,None].expand(-1,6,1))[:,:,0]
    truth=exact(y0,a,t,utility)
    if utility=="logit": torch.testing.assert_close(shapley(y0,a,t,utility,gens(2))[0],truth); return
    s=Surrogate(y0-y0.gather(1,t[:,None]),a-own[:,:,None],leaders,utility=="softmax")
    orders=torch.tensor(list(itertools.permutations(range(6))))[None].expand(2,-1,-1)
    got=s.values()+s.missed(orders).mean(1)+(own if utility=="rest" else 0)
    torch.testing.assert_close(got,truth,atol=1e-9,rtol=1e-8)

@pytest.mark.parametrize("utility",UT)
@pytest.mark.parametrize("big",(0.,3.,20.))
def test_near_enumeration(utility,big):
    """One dominant position among the cases; within 5 standard errors, and near."""
    y0,a,t=game(scale=.2,P=14,K=20,B=6,big=big,dtype=torch.float32)
    truth=exact(y0,a,t,utility)
    v,e=shapley(y0,a,t,utility,gens(6))
    assert ((v.double()-truth).norm(dim=1)/truth.norm(dim=1)).max()<(1e-2 if utility=="softmax" else 2e-3)
    if utility!="logit": assert ((v.double()-truth).square().sum(1)<25*e.double().square().sum(1)+1e-10).all()

@pytest.mark.parametrize("utility",UT)
def test_efficient_and_symmetric_and_null(utility):
    y0,a,t=game(scale=.7,P=20,B=4); a[:,3]=0; a[:,5]=a[:,4]
    v,e=shapley(y0,a,t,utility,gens(4),pairs=4)
    from camkit.utilities import UTILITIES
    u=UTILITIES[utility]; torch.testing.assert_close(v.sum(1),u(y0+a.sum(1),t)-u(y0,t))
    if utility!="logit":
        s=shapley(y0,a,t,utility,gens(4),pairs=0,leaders=0)[0]; torch.testing.assert_close(s[:,4],s[:,5])
    assert ((v[:,3]).abs()<=5*e[:,3]+1e-12).all()
    assert (e.isfinite()).all()

@pytest.mark.parametrize("utility",("softmax","rest"))
def test_standard_errors_are_right(utility):
    """Mean squared error over seeds is the mean squared standard error."""
    y0,a,t=game(scale=.8,P=12,K=10,B=8)
    truth=exact(y0,a,t,utility); sq=0; se=0
    for seed in range(60):
        v,e=shapley(y0,a,t,utility,gens(8,seed+1),pairs=6,shrink=False); sq=sq+(v-truth).square().sum(1); se=se+e.square().sum(1)
    assert (.7<sq/se).all() and (sq/se<1.4).all(), sq/se

def test_a_batch_does_not_matter():
    y0,a,t=game(P=20,B=5,dtype=torch.float32)
    whole=shapley(y0,a,t,"rest",gens(5))[0]
    alone=torch.cat([shapley(y0[i:i+1],a[i:i+1],t[i:i+1],"rest",gens(5)[i:i+1])[0] for i in range(5)])
    torch.testing.assert_close(whole,alone,atol=1e-6,rtol=1e-5)

def mean_head(x,W,kind):
    y=x.clamp(min=0)**2 if kind!="lin" else x
    return y.mean((2,3))@W
def test_coalition_logits_by_rows_and_by_passes():
    g=torch.Generator().manual_seed(1); W=torch.randn(6,9,generator=g); A=torch.randn(3,6,4,5,generator=g); A0=A.mean((2,3),keepdim=True).expand_as(A)
    for kind in("lin","act"):
        h=lambda x:mean_head(x,W,kind)
        n1,a1,f1=coalition_logits(h,A,A0); n2,a2,f2=coalition_logits(h,A,A0,rows=False)
        assert f1.all() and f2.all(); torch.testing.assert_close(a1,a2,atol=1e-5,rtol=1e-4)
    # sum pooling is affine, but no mean: rows fail, passes fit
    calls=[]
    def h(x): calls.append(x.shape); return x.relu().sum((2,3))@W
    n,a,f=coalition_logits(h,A,torch.zeros_like(A)); assert f.all() and calls[-1]==A.shape
    # a head that is not affine
    h=lambda x:(x.mean((2,3))@W).relu()@torch.eye(9)
    assert not coalition_logits(h,A*5,torch.zeros_like(A))[2].any()
def test_decision_is_each_images_own():
    """An image whose logits are large must not excuse another: one image affine, one not, together and apart."""
    g=torch.Generator().manual_seed(1); W=torch.randn(6,9,generator=g); A=torch.randn(2,6,4,4,generator=g)
    A[0]=A[0].abs()*1e3
    W=W.abs()
    h=lambda x: x.mean((2,3))@W+ .01*torch.sin(x[:,0,0,:1])*torch.sin(x[:,0,-1,-1:])*(x.abs().amax((1,2,3))<100)[:,None]
    both=coalition_logits(h,A,torch.zeros_like(A))[2]
    apart=torch.cat([coalition_logits(h,A[i:i+1],torch.zeros_like(A[:1]))[2] for i in(0,1)])
    assert both.tolist()==apart.tolist()==[True,False]
