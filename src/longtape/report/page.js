// Draws the page's charts with uPlot: from plain JSON, in the page's colours, panned and zoomed together by group.
"use strict";
(() => {
  const content = JSON.parse(document.getElementById("charts").textContent);
  const arrays = {}, groups = {}, drawn = new Map();
  const root = document.documentElement;

  function array(name) {
    if (!(name in arrays)) {
      const { kind, data } = content.arrays[name];
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      arrays[name] = Array.from(new (kind === "f8" ? Float64Array : Float32Array)(bytes.buffer), (v) => (Number.isNaN(v) ? null : v));
    }
    return arrays[name];
  }

  const color = (role) => getComputedStyle(root).getPropertyValue("--" + role).trim();
  const pale = (role, alpha) => color(role) + Math.round(255 * alpha).toString(16).padStart(2, "0");

  function number(value, step) {
    if (value == null) return "";
    if (value === 0) return "0";
    const size = Math.floor(Math.log10(Math.abs(value)));
    if (size < -5 || size > 9) return value.toExponential(1).replace("-", "−");
    const decimals = step ? decimalsOf(step) : Math.max(0, Math.min(6, 3 - size));
    return value.toLocaleString("en", { minimumFractionDigits: step ? decimals : 0, maximumFractionDigits: decimals }).replace("-", "−");
  }

  function decimalsOf(step) {
    let decimals = 0;
    while (decimals < 9 && Math.abs(Math.round(step * 10 ** decimals) - step * 10 ** decimals) > 1e-6 * step * 10 ** decimals) decimals++;
    return decimals;
  }

  function moment(seconds, days) {
    const text = new Date(1e3 * seconds).toISOString();
    return days ? text.slice(0, 10) : text.slice(0, 16).replace("T", " ");
  }

  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

  function tick(seconds, step, first) {
    const at = new Date(1e3 * seconds), day = at.getUTCDate(), month = MONTHS[at.getUTCMonth()], year = at.getUTCFullYear();
    const midnight = seconds % 86400 === 0;
    if (step >= 364 * 86400) return `${year}`;
    if (step >= 27 * 86400) return first || at.getUTCMonth() === 0 ? `${month} ${year}` : month;
    if (step >= 5 * 86400 && first) return `${day} ${month} ${year}`;
    if (step >= 86400 || midnight) return `${day} ${month}`;
    return at.toISOString().slice(11, step < 60 ? 19 : 16);
  }

  // uPlot's options

  const SHAPES = {
    line: () => ({}),
    step: () => ({ paths: uPlot.paths.stepped({ align: 1 }) }),
    bars: (one) => ({ paths: uPlot.paths.bars({ size: [0.82, 90] }), fill: pale(one.color, 0.75), width: 0, points: { show: false } }),
    dots: (one) => ({ paths: () => null, points: { show: true, size: 3.4, width: 0, fill: pale(one.color, 0.3) } }),
  };

  function seriesOf(chart) {
    const lines = chart.series.map((one) => ({
      label: one.name, stroke: color(one.color), width: one.width, dash: one.dash ? [5, 4] : undefined,
      fill: one.fill ? pale(one.color, 0.18) : undefined,
      points: { show: array(one.y).filter((v) => v != null).length === 1, size: 6, fill: color(one.color) }, ...SHAPES[one.shape](one),
    }));
    const edge = (name) => ({ label: name, stroke: "transparent", width: 0, points: { show: false } });
    return [{}, ...chart.bands.flatMap((one) => [edge(one.name), edge(one.name)]), ...lines, edge("")];
  }

  function dataOf(chart) {
    const bands = chart.bands.flatMap((one) => [array(one.upper), array(one.lower)]);
    const x = array(chart.x);
    return [x, ...bands, ...chart.series.map((one) => array(one.y)), x.map(() => null)];  // the last one, so that there is a y
  }

  function axesOf(chart) {
    const look = { stroke: color("muted"), font: "12px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: color("line"), width: 1 } };
    const x = { ...look, size: 24, grid: { show: chart.kind !== "category", stroke: color("line"), width: 1 } };
    if (chart.kind === "category") {
      x.splits = () => chart.labels.map((_, n) => n);
      x.values = (u, splits) => {
        const every = Math.ceil((7 * Math.max(...chart.labels.map((l) => l.length)) + 10) / (u.bbox.width / devicePixelRatio / chart.labels.length));
        return splits.map((n) => (n % every ? "" : chart.labels[n]));
      };
    } else if (chart.kind === "time") {
      x.values = (u, splits, axis, space, step) => splits.map((v, n) => tick(v, step, n === 0));
      x.space = 62;
    } else {
      x.values = (u, splits) => splits.map((v) => number(v));
      if (!chart.logX && array(chart.x).every(Number.isInteger)) x.incrs = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
    }
    const y = {
      ...look,
      size: (u, values) => 12 + 7 * Math.max(2, ...(values || []).map((v) => v.length)),
      values: (u, splits) => {
        const step = chart.log || splits.length < 2 ? null : Math.abs(splits[1] - splits[0]);
        return splits.map((v) => number(v, step));
      },
    };
    if (chart.log) logarithmic(y);
    if (chart.logX) logarithmic(x);
    return [x, y];
  }

  // Ticks at round numbers wherever the axis begins: 1, 2, 5 in every decade, more where it spans little.
  function logarithmic(axis) {
    axis.filter = (u, splits) => splits;
    axis.splits = (u, number, low, high) => {
      const spans = high / low, round = spans > 300 ? [1] : spans > 8 ? [1, 2, 5] : spans > 2.5 ? [1, 1.5, 2, 3, 5, 7] : [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9];
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const one of round) { const at = +(one * 10 ** power).toPrecision(6); if (at >= low && at <= high) found.push(at); }
      return found.filter((_, n) => n % Math.ceil(found.length / 9) === 0);
    };
  }

  function xRange(chart) {
    const x = array(chart.x);
    if (chart.kind === "category") return [-0.6, chart.labels.length - 0.4];
    const places = [...x, ...chart.marks.flatMap((one) => array(one.x))];
    let low = Infinity, high = -Infinity;
    for (const v of places) { low = Math.min(low, v); high = Math.max(high, v); }
    const bars = chart.series.some((one) => one.shape === "bars") && x.length > 1;
    const room = bars ? 0.6 * (x[1] - x[0]) : chart.kind === "number" && !chart.logX ? 0.02 * (high - low) || 0.5 : low === high ? 1 : 0;
    return [low - room, high + room];
  }

  function optionsOf(chart, element) {
    const whole = xRange(chart), isBars = chart.series.some((one) => one.shape === "bars");
    const y = { distr: chart.log ? 3 : 1 };
    if (chart.log && !chart.yRange) y.range = (u, low, high) => (low == null ? [1, 10] : [low * (low / high) ** 0.05, high * (high / low) ** 0.05 * (low === high ? 1.1 : 1)]);
    else if (chart.yRange) y.range = () => chart.yRange;
    else if (isBars) y.range = (u, low, high) => uPlot.rangeNum(Math.min(0, low), Math.max(0, high), 0.08, true);
    return {
      width: element.clientWidth, height: element.clientHeight, legend: { show: false }, padding: [8, 18, 0, 0],
      tzDate: (seconds) => uPlot.tzDate(new Date(1e3 * seconds), "Etc/UTC"),
      scales: { x: { time: chart.kind === "time", distr: chart.logX ? 3 : 1, min: whole[0], max: whole[1], range: (u, low, high) => (low == null || low === high ? whole : [low, high]) }, y },
      axes: axesOf(chart), series: seriesOf(chart),
      bands: chart.bands.map((one, n) => ({ series: [2 * n + 1, 2 * n + 2], fill: pale(one.color, 0.17) })),
      cursor: { y: false, drag: { x: chart.kind !== "category", y: false }, points: { size: 5 }, bind: { mousedown: (u, target, usual) => (event) => (event.shiftKey ? pan(u, event) : usual(event)), dblclick: (u) => () => showAll(u) } },
      hooks: {
        init: [(u) => { u.whole = whole; gestures(u); }],
        drawClear: [(u) => spans(u, chart)],
        draw: [(u) => { rules(u, chart); marks(u, chart); }],
        setScale: [(u, key) => key === "x" && zoomed(u, chart, element)],
        setCursor: [(u) => tip(u, chart)],
      },
    };
  }

  // What uPlot does not draw

  function clipped(u, paint) {
    const { left, top, width, height } = u.bbox;
    u.ctx.save();
    u.ctx.beginPath();
    u.ctx.rect(left, top, width, height);
    u.ctx.clip();
    paint(u.ctx, left, top, width, height);
    u.ctx.restore();
  }

  const spans = (u, chart) => clipped(u, (ctx, left, top, width, height) => {
    ctx.fillStyle = pale("neutral", 0.12);
    for (const [from, to] of chart.spans) {
      const start = u.valToPos(from, "x", true);
      ctx.fillRect(start, top, Math.max(2, u.valToPos(to, "x", true) - start), height);
    }
  });

  const rules = (u, chart) => clipped(u, (ctx, left, top, width, height) => {
    for (const one of chart.rules) {
      const place = u.valToPos(one.value, one.axis, true);
      ctx.strokeStyle = color(one.color);
      ctx.lineWidth = 1.3 * devicePixelRatio;
      ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.beginPath();
      if (one.axis === "y") { ctx.moveTo(left, place); ctx.lineTo(left + width, place); }
      else { ctx.moveTo(place, top); ctx.lineTo(place, top + height); }
      ctx.stroke();
    }
  });

  const marks = (u, chart) => clipped(u, (ctx) => {
    for (const one of chart.marks) {
      const x = array(one.x), y = array(one.y), sizes = typeof one.size === "number" ? null : array(one.size);
      const low = one.lower && array(one.lower), high = one.upper && array(one.upper);
      ctx.fillStyle = ctx.strokeStyle = color(one.color);
      ctx.lineWidth = 1.2 * devicePixelRatio;
      const { min, max } = u.scales.x;
      for (let n = 0; n < x.length; n++) {
        if (x[n] < min || x[n] > max || y[n] == null) continue;
        const across = u.valToPos(x[n], "x", true), down = u.valToPos(y[n], "y", true);
        if (low && low[n] != null && high[n] != null) {
          ctx.beginPath();
          ctx.moveTo(across, u.valToPos(low[n], "y", true));
          ctx.lineTo(across, u.valToPos(high[n], "y", true));
          ctx.stroke();
        }
        symbol(ctx, one.symbol, across, down, (devicePixelRatio * (sizes ? sizes[n] : one.size)) / 1.4);
      }
    }
  });

  function symbol(ctx, name, x, y, r) {
    ctx.beginPath();
    if (name === "dot" || name === "ring") ctx.arc(x, y, r, 0, 2 * Math.PI);
    else {
      const s = name === "up" ? 1 : -1;  // the tip is at the price
      ctx.moveTo(x, y);
      ctx.lineTo(x - r, y + 1.9 * s * r);
      ctx.lineTo(x + r, y + 1.9 * s * r);
      ctx.closePath();
    }
    if (name === "ring") ctx.stroke(); else ctx.fill();
  }

  function tip(u, chart) {
    const n = u.cursor.idx;
    if (!u.tip) u.over.append((u.tip = Object.assign(document.createElement("div"), { className: "tip" })));
    const rows = n == null ? [] : tipRows(u, chart, n);
    u.tip.hidden = rows.length === 0;
    if (!rows.length) return;
    const x = u.data[0][n];
    const head = chart.kind === "time" ? moment(x, array(chart.x).every((v) => v % 86400 === 0)) : chart.kind === "category" ? chart.labels[x] : number(x);
    u.tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: head }), ...rows);
    const left = u.cursor.left, beyond = left > u.over.clientWidth / 2;
    u.tip.style.left = beyond ? "" : left + 14 + "px";
    u.tip.style.right = beyond ? u.over.clientWidth - left + 14 + "px" : "";
    u.tip.style.top = "6px";
  }

  function tipRows(u, chart, n) {
    const bands = chart.bands.map((one) => [one, [array(one.lower)[n], array(one.upper)[n]]]);
    const lines = chart.series.map((one) => [one, [array(one.y)[n]]]);
    return [...lines, ...bands].filter(([one, v]) => one.name && v.every((w) => w != null)).map(([one, v]) => {
      const row = document.createElement("div"), swatch = document.createElement("i");
      swatch.style.background = color(one.color);
      row.append(swatch, `${one.name}: ${v.map((w) => number(w)).join(" to ")}`);
      return row;
    });
  }

  // Moving about

  function show(u, low, high) {
    const [first, last] = u.whole, span = Math.min(high - low, last - first);
    low = Math.max(first, Math.min(low, last - span));
    u.setScale("x", { min: low, max: low + span });
  }

  const showAll = (u) => show(u, ...u.whole);

  function zoomed(u, chart, element) {
    const { min, max } = u.scales.x;
    const button = element.parentElement.querySelector("button.all");
    if (button && u.whole) { button.hidden = max - min > 0.999 * (u.whole[1] - u.whole[0]); button.onclick = () => showAll(u); }
    for (const other of groups[chart.group] || [])
      if (other !== u && other.whole && (other.scales.x.min !== min || other.scales.x.max !== max)) other.setScale("x", { min, max });
  }

  function pan(u, event) {
    const from = event.clientX, { min, max } = u.scales.x, perPixel = (max - min) / u.over.clientWidth;
    const move = (e) => show(u, min - (e.clientX - from) * perPixel, max - (e.clientX - from) * perPixel);
    document.addEventListener("mousemove", move);
    document.addEventListener("mouseup", () => document.removeEventListener("mousemove", move), { once: true });
  }

  function zoomAbout(u, share, factor) {
    const { min, max } = u.scales.x, centre = min + share * (max - min);
    show(u, centre - factor * (centre - min), centre + factor * (max - centre));
  }

  function gestures(u) {
    const over = u.over, place = (x) => (x - over.getBoundingClientRect().left) / over.clientWidth;
    over.addEventListener("wheel", (event) => {
      const { min, max } = u.scales.x, sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (event.ctrlKey || event.metaKey) zoomAbout(u, place(event.clientX), Math.exp(event.deltaY / 300));
      else if (sideways) { const by = ((event.deltaX || event.deltaY) * (max - min)) / over.clientWidth; show(u, min + by, max + by); }
      else return;  // the page scrolls
      event.preventDefault();
    }, { passive: false });
    let before = null;
    const fingers = (event) => ({ x: Array.from(event.touches).reduce((sum, t) => sum + t.clientX, 0) / event.touches.length, apart: event.touches.length > 1 ? Math.abs(event.touches[0].clientX - event.touches[1].clientX) : 0 });
    over.addEventListener("touchstart", (event) => { before = fingers(event); }, { passive: true });
    over.addEventListener("touchmove", (event) => {
      const now = fingers(event), { min, max } = u.scales.x, by = ((before.x - now.x) * (max - min)) / over.clientWidth;
      if (now.apart && before.apart) { zoomAbout(u, place(now.x), before.apart / Math.max(now.apart, 1)); event.preventDefault(); }
      show(u, min + by, max + by);
      before = now;
    }, { passive: false });
  }

  // The page

  function drawChart(element) {
    if (element.clientWidth === 0) return;
    const chart = content.charts[element.dataset.chart], old = drawn.get(element);
    const kept = old && !root.classList.contains("printing") ? [old.scales.x.min, old.scales.x.max] : null;
    if (old) { old.destroy(); if (chart.group) groups[chart.group].delete(old); }
    const u = new uPlot(optionsOf(chart, element), dataOf(chart), element);
    if (chart.group) (groups[chart.group] ||= new Set()).add(u);
    drawn.set(element, u);
    if (kept) u.setScale("x", { min: kept[0], max: kept[1] });
  }

  function drawMap(element) {
    const { rows, columns, shades } = element.dataset, canvas = document.createElement("canvas");
    const bytes = Uint8Array.from(atob(shades), (c) => c.charCodeAt(0)), hex = color("accent");
    canvas.width = columns; canvas.height = rows;
    const image = new ImageData(+columns, +rows), rgb = [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));
    bytes.forEach((shade, n) => image.data.set([...rgb, shade], 4 * n));
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.style.imageRendering = "pixelated";
    element.replaceChildren(canvas);
  }

  function redraw() {
    for (const element of document.querySelectorAll(".chart")) if (drawn.has(element)) drawChart(element);
    document.querySelectorAll(".map").forEach(drawMap);
  }

  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && !drawn.has(entry.target)) drawChart(entry.target);
  }), { rootMargin: "600px" });

  const sized = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    const u = drawn.get(target);
    if (u && target.clientWidth && u.width !== target.clientWidth) u.setSize({ width: target.clientWidth, height: target.clientHeight });
  }));

  for (const element of document.querySelectorAll(".chart")) { seen.observe(element); sized.observe(element); }
  document.querySelectorAll(".map").forEach(drawMap);

  for (const tabs of document.querySelectorAll(".tabs")) {
    const buttons = [...tabs.querySelectorAll(":scope > .tablist > button")], panels = [...tabs.querySelectorAll(":scope > .panel")];
    buttons.forEach((button, n) => button.addEventListener("click", () => {
      buttons.forEach((other, m) => other.setAttribute("aria-selected", m === n));
      panels.forEach((panel, m) => { panel.hidden = m !== n; });
    }));
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let folded = [];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    folded = [...document.querySelectorAll(".panel[hidden]")];
    folded.forEach((panel) => { panel.hidden = false; });
    document.querySelectorAll(".chart").forEach(drawChart);
    document.querySelectorAll(".map").forEach(drawMap);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    folded.forEach((panel) => { panel.hidden = true; });
    redraw();
  });
})();
