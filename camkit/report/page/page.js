(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  // Told apart by dash as well as by colour; controls are grey.
  const COLOURS = ["#d1495b", "#0b84c6", "#2a9d4b", "#b8860b", "#8e5bd0", "#e07a1f", "#008f8f", "#c2559d", "#5a7d2a"];
  const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

  function element(name, attributes = {}, text = "") {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  function draw(parent, name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  const percent = (value) => (value === null ? "–" : (100 * value).toFixed(2));
  const block = () => data.blocks[Number($("block").value)];

  function fill(select, names, chosen = 0) {
    select.replaceChildren(...names.map((name, place) => new Option(name, place)));
    select.value = Math.min(chosen, names.length - 1);
  }

  function style(methods, place) {
    if (methods[place].control) return { stroke: "var(--control)", dash: DASHES[(place + 1) % 4] };
    return { stroke: COLOURS[place % COLOURS.length], dash: DASHES[Math.floor(place / COLOURS.length) % 4] };
  }

  // Tables

  function sortTable(table, column, direction) {
    const key = (row) => {
      const cell = row.cells[column];
      return column === 0 ? cell.textContent.trim() : cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    };
    for (const body of table.tBodies) {
      const rows = [...body.rows];
      if (column > 0 && rows.every((row) => key(row) === null)) continue;
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return direction * (typeof x === "string" ? x.localeCompare(y) : x - y);
      });
      body.append(...rows);
    }
    [...table.tHead.rows[0].cells].forEach((cell, place) => {
      cell.setAttribute("aria-sort", place !== column ? "none" : direction > 0 ? "ascending" : "descending");
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      cell.querySelector("button").addEventListener("click", () => {
        const descending = cell.textContent.includes("↑");
        const before = cell.getAttribute("aria-sort");
        const direction = before === "none" ? (descending ? -1 : 1) : before === "ascending" ? -1 : 1;
        sortTable(table, column, direction);
      });
    });
  }

  // Figures

  function ticks(low, high) {
    const rough = (high - low) / 7;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
    return found;
  }

  /** Axes of a figure; gives the functions from values to places. */
  function axes(svg, box, x, y, xLabel, yLabel) {
    const toX = (v) => box.left + ((v - x[0]) / (x[1] - x[0])) * (box.right - box.left);
    const toY = (v) => box.bottom - ((v - y[0]) / (y[1] - y[0])) * (box.bottom - box.top);
    const label = (value, all) => {
      const step = all.length > 1 ? all[1] - all[0] : 1;
      return value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
    };
    const [xs, ys] = [ticks(...x), ticks(...y)];
    for (const at of xs) {
      draw(svg, "line", { class: "axis", x1: toX(at), x2: toX(at), y1: box.top, y2: box.bottom });
      draw(svg, "text", { class: "tick", x: toX(at), y: box.bottom + 15, "text-anchor": "middle" }, label(at, xs));
    }
    for (const at of ys) {
      draw(svg, "line", { class: "axis", x1: box.left, x2: box.right, y1: toY(at), y2: toY(at) });
      draw(svg, "text", { class: "tick", x: box.left - 6, y: toY(at) + 4, "text-anchor": "end" }, label(at, ys));
    }
    draw(svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 34, "text-anchor": "middle" }, xLabel);
    const middle = (box.top + box.bottom) / 2;
    draw(svg, "text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, yLabel);
    return [toX, toY];
  }

  function figure(width, height, label) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    return svg;
  }

  function range(values) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = (high - low || 1) * 0.06;
    return [low - margin, high + margin];
  }

  function drawScatter() {
    const { methods, scores, value, low, high } = block();
    const [i, j] = [Number($("scatter-x").value), Number($("scatter-y").value)];
    const controls = $("scatter-controls").checked;
    const shown = methods.map((_, m) => m).filter((m) => value[m][i] !== null && value[m][j] !== null
      && (controls || !methods[m].control));
    if (!shown.length) return $("scatter-figure").replaceChildren();
    // Phones get a figure of their own width: scaled down, its letters could not be read.
    const width = Math.min(760, Math.max(320, $("scatter-figure").clientWidth));
    // As high as the column of names beside it, and as much narrower as its longest name wants.
    const letters = Math.max(...shown.map((m) => methods[m].title.length));
    const box = { left: 56, right: width - Math.min(width / 2, Math.max(104, 16 + 7.5 * letters)), top: 12 };
    const height = Math.max(Math.min(480, width * 0.9), 14 * shown.length + box.top + 44);
    box.bottom = height - 44;
    const svg = figure(width, height, `${scores[j].short} against ${scores[i].short}; the table has the values`);
    // One image has no interval.
    const ends = (c) => shown.flatMap((m) => [low[m][c] ?? value[m][c], high[m][c] ?? value[m][c]]).map((v) => 100 * v);
    const [toX, toY] = axes(svg, box, range(ends(i)), range(ends(j)),
      `${scores[i].heading}, percent`, `${scores[j].heading}, percent`);
    const labels = [];
    for (const m of shown) {
      const [x, y] = [toX(100 * value[m][i]), toY(100 * value[m][j])];
      const { stroke } = style(methods, m);
      const group = draw(svg, "g", { stroke, fill: stroke });
      draw(group, "title", {}, `${methods[m].title}: ${scores[i].short} ${percent(value[m][i])}, ${scores[j].short} ${percent(value[m][j])}`);
      if (low[m][i] !== null) draw(group, "line", { x1: toX(100 * low[m][i]), x2: toX(100 * high[m][i]), y1: y, y2: y, "stroke-opacity": 0.5 });
      if (low[m][j] !== null) draw(group, "line", { x1: x, x2: x, y1: toY(100 * low[m][j]), y2: toY(100 * high[m][j]), "stroke-opacity": 0.5 });
      if (methods[m].control) draw(group, "rect", { x: x - 4, y: y - 4, width: 8, height: 8, fill: "var(--ground)", "stroke-width": 2 });
      else draw(group, "circle", { cx: x, cy: y, r: 4.5 });
      labels.push({ x, y, at: y, stroke, name: methods[m].title });
    }
    // Names stand in a column on the right, each as near to the height of its point as the others let it.
    labels.sort((a, b) => a.y - b.y || b.x - a.x);
    labels.forEach((one, place) => { if (place) one.at = Math.max(one.at, labels[place - 1].at + 14); });
    let lowest = box.bottom;
    for (const one of [...labels].reverse()) { one.at = Math.min(one.at, lowest); lowest = one.at - 14; }
    for (const one of labels) {
      draw(svg, "line", { x1: one.x, y1: one.y, x2: box.right + 8, y2: one.at, stroke: one.stroke, "stroke-opacity": 0.35 });
      draw(svg, "text", { x: box.right + 12, y: one.at + 4 }, one.name);
    }
    return $("scatter-figure").replaceChildren(svg);
  }

  function drawCurves() {
    const { methods, curves } = block();
    const width = Math.min(520, Math.max(320, $("curve-figures").clientWidth));
    const shown = [...$("curve-methods").children].map((button) => button.getAttribute("aria-pressed") === "true");
    const figures = Object.entries(curves).map(([name, lines]) => {
      const height = 330;
      const svg = figure(width, height, `${name} curves; the table has the areas`);
      const box = { left: 56, right: width - 12, top: 26, bottom: height - 44 };
      draw(svg, "text", { x: box.left, y: 14, "font-weight": 600 }, name[0].toUpperCase() + name.slice(1));
      const [toX, toY] = axes(svg, box, [0, 100], [0, 100], `pixels ${name === "deletion" ? "deleted" : "put in"}, percent`, "probability, percent");
      methods.forEach((method, m) => {
        const line = lines[method.name];
        if (!line || !shown[m]) return;
        const x = (k) => toX((100 * k) / (line.mean.length - 1));
        const y = (v) => toY(100 * Math.min(1, Math.max(0, v)));
        const { stroke, dash } = style(methods, m);
        const above = line.mean.map((v, k) => `${x(k).toFixed(1)},${y(v + line.half[k]).toFixed(1)}`);
        const below = line.mean.map((v, k) => `${x(k).toFixed(1)},${y(v - line.half[k]).toFixed(1)}`);
        if (line.half[0] !== null) draw(svg, "polygon", { points: [...above, ...below.reverse()].join(" "), fill: stroke, "fill-opacity": 0.12 });
        const points = line.mean.map((v, k) => `${x(k).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
        const path = draw(svg, "polyline", { points, fill: "none", stroke, "stroke-width": 1.8, "stroke-dasharray": dash });
        draw(path, "title", {}, method.title);
      });
      return svg;
    });
    if (figures.length) $("curve-figures").replaceChildren(...figures);
    else $("curve-figures").replaceChildren(element("p", {}, "No curves are stored for this one."));
  }

  function curveButtons() {
    const { methods, curves } = block();
    const known = new Set(Object.values(curves).flatMap((lines) => Object.keys(lines)));
    $("curve-methods").replaceChildren(...methods.map((method, m) => {
      const pressed = known.has(method.name) && (m < 4 || method.name === "shapleycam");
      const button = element("button", { type: "button", "aria-pressed": pressed });
      const { stroke, dash } = style(methods, m);
      const key = draw(button, "svg", { width: 22, height: 8, "aria-hidden": "true" });
      draw(key, "line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke, "stroke-width": 3, "stroke-dasharray": dash });
      button.append(method.title);
      button.hidden = !known.has(method.name);
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
        drawCurves();
      });
      return button;
    }));
  }

  // Images

  const SIDE = 112;

  /** A map's bytes enlarged to SIDE x SIDE as camkit enlarges maps: bilinear, half-pixel centres, then min-max. */
  function enlarge(bytes, height, width) {
    const out = new Float32Array(SIDE * SIDE);
    const at = (k, size) => Math.min(size - 1, Math.max(0, ((k + 0.5) * size) / SIDE - 0.5));
    let [low, high] = [Infinity, -Infinity];
    for (let r = 0; r < SIDE; r++) {
      const y = at(r, height), y0 = Math.floor(y), y1 = Math.min(height - 1, y0 + 1), fy = y - y0;
      for (let c = 0; c < SIDE; c++) {
        const x = at(c, width), x0 = Math.floor(x), x1 = Math.min(width - 1, x0 + 1), fx = x - x0;
        const top = bytes[y0 * width + x0] * (1 - fx) + bytes[y0 * width + x1] * fx;
        const bottom = bytes[y1 * width + x0] * (1 - fx) + bytes[y1 * width + x1] * fx;
        const v = top * (1 - fy) + bottom * fy;
        out[r * SIDE + c] = v;
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
    }
    return out.map((v) => (v - low) / (high - low || 1));
  }

  function paint(canvas, map, shape, photo, overlay) {
    const context = canvas.getContext("2d");
    const bytes = Uint8Array.from(atob(map), (c) => c.charCodeAt(0));
    const values = enlarge(bytes, ...shape);
    const colours = data.colours[Number($("gallery-colours").value)].rgb;
    const heat = context.createImageData(SIDE, SIDE);
    values.forEach((v, k) => {
      const colour = parseInt(colours.slice(6 * Math.round(255 * v), 6 * Math.round(255 * v) + 6), 16);
      heat.data.set([colour >> 16, (colour >> 8) & 255, colour & 255, 255], 4 * k);
    });
    const layer = new OffscreenCanvas(SIDE, SIDE);
    layer.getContext("2d").putImageData(heat, 0, 0);
    context.globalAlpha = 1;
    if (photo && overlay) {
      context.drawImage(photo, 0, 0, SIDE, SIDE);
      context.globalAlpha = 0.6;
    }
    context.drawImage(layer, 0, 0);
  }

  let drawing = 0;

  async function drawGallery() {
    const turn = ++drawing;
    const { methods, scores, gallery } = block();
    const list = Object.keys(gallery.lists)[Number($("gallery-list").value)];
    const score = Number($("gallery-score").value);
    const overlay = $("gallery-overlay")?.checked;
    $("gallery-basis").textContent = gallery.basis;
    const entries = await Promise.all((gallery.lists[list] ?? []).map(async (number) => {
      const one = gallery.images[number];
      const section = element("div", { class: "image" });
      const heading = element("h3", {}, `${one.text} `);
      heading.append(element("small", {}, one.id));
      const tiles = element("div", { class: "tiles" });
      let photo = null;
      if (one.photo !== null) {
        photo = element("img", { src: data.photos[one.photo], alt: `Photo ${one.id}` });
        await photo.decode().catch(() => { photo = null; });
        if (photo) tile(tiles, photo, "photo", "");
      }
      methods.forEach((method, m) => {
        const map = one.maps[method.name];
        const value = one.scores[m][score];
        if (map === undefined && method.control) return;
        const words = `${method.title}, ${scores[score].short} ${percent(value)}`;
        const canvas = element("canvas", { width: SIDE, height: SIDE, role: "img", "aria-label": `Saliency map of ${words}` });
        if (map) paint(canvas, map, gallery.shapes[method.name], photo, overlay);
        else canvas.hidden = true;
        tile(tiles, canvas, method.title, percent(value));
      });
      section.append(heading, tiles);
      return section;
    }));
    // Photos decode at their own pace: what was chosen last stays.
    if (turn === drawing) $("gallery-images").replaceChildren(...entries);
  }

  function tile(tiles, picture, name, value) {
    const made = element("figure");
    const caption = element("figcaption");
    caption.append(element("span", {}, name), element("span", {}, value));
    made.append(picture, caption);
    tiles.append(made);
  }

  // Choices

  function chooseBlock() {
    const { scores, curves, gallery } = block();
    const place = (column) => Math.max(0, scores.findIndex((score) => score.name === column));
    fill($("scatter-x"), scores.map((score) => score.heading), place("average_drop"));
    fill($("scatter-y"), scores.map((score) => score.heading), place("adcc"));
    drawScatter();
    if ($("curves")) { curveButtons(); drawCurves(); }
    if ($("gallery")) {
      fill($("gallery-list"), Object.keys(gallery.lists));
      fill($("gallery-score"), scores.map((score) => score.heading), place("adcc"));
      drawGallery();
    }
  }

  fill($("block"), data.blocks.map((one) => one.name));
  $("block-choice").hidden = data.blocks.length < 2;
  $("block").addEventListener("change", chooseBlock);
  for (const id of ["scatter-x", "scatter-y", "scatter-controls"]) $(id).addEventListener("change", drawScatter);
  if ($("gallery")) {
    fill($("gallery-colours"), data.colours.map((one) => one.name));
    for (const id of ["gallery-list", "gallery-score", "gallery-colours", "gallery-overlay"]) $(id)?.addEventListener("change", drawGallery);
  }
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    drawScatter();
    if ($("curves")) drawCurves();
  });
  chooseBlock();
})();
