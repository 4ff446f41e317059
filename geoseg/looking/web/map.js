// A map of what geoseg has written.  All it shows comes with the page: nothing is fetched.
// Coordinates of the plane are metres of EPSG:3857, or pixels of outputs without a CRS; y goes up.
"use strict";

(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);

  // --- what was packed ------------------------------------------------------------------------------------------

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function integers(bytes, count, signed) {
    const values = new Float64Array(count);
    let at = 0;
    for (let i = 0; i < count; i++) {
      let value = 0, unit = 1, byte;
      do {
        byte = bytes[at++];
        value += (byte & 127) * unit;
        unit *= 128;
      } while (byte > 127);
      values[i] = signed ? (value % 2 ? -(value + 1) / 2 : value / 2) : value;
    }
    return values;
  }

  function starts(counts) {
    const offsets = new Uint32Array(counts.length + 1);
    counts.forEach((count, i) => { offsets[i + 1] = offsets[i] + count; });
    return offsets;
  }

  async function polygonsOf(packed) {
    const { count, step, origin } = packed;
    const numbers = async (name, length, signed) => integers(await unpacked(packed[name]), length, signed);
    const features = starts(await numbers("rings", count));
    const rings = starts(await numbers("points", features[count]));
    const deltas = await numbers("deltas", 2 * rings[features[count]], true);
    for (let i = 2; i < deltas.length; i++) deltas[i] += deltas[i - 2];
    const boxes = new Float64Array(4 * count);
    for (let f = 0; f < count; f++) {
      let left = Infinity, bottom = Infinity, right = -Infinity, top = -Infinity;
      for (let p = rings[features[f]]; p < rings[features[f + 1]]; p++) {
        left = Math.min(left, deltas[2 * p]); right = Math.max(right, deltas[2 * p]);
        bottom = Math.min(bottom, deltas[2 * p + 1]); top = Math.max(top, deltas[2 * p + 1]);
      }
      boxes.set([left, bottom, right, top], 4 * f);
    }
    return {
      count, step, origin, features, rings, xy: deltas, boxes,
      of: await numbers("classes", count),
      sure: await numbers("confidence", count),
      columns: JSON.parse(new TextDecoder().decode(await unpacked(packed.columns))),
    };
  }

  const files = await Promise.all(data.polygons.map(polygonsOf));
  const pictures = await Promise.all(data.rasters.map(async (raster) => ({
    ...raster,
    values: await unpacked(raster.values),
    sure: raster.sure ? await unpacked(raster.sure) : null,
  })));

  // --- state and the map ----------------------------------------------------------------------------------------

  // Confidence is counted in thousandths plus one; 0 is none, which is always shown.
  const state = { hidden: new Set(), least: 0, opacity: 0.5 };
  const isShown = (file, f) =>
    !state.hidden.has(file.of[f]) && (file.sure[f] === 0 || file.sure[f] - 1 >= state.least);

  const crs = data.mercator ? L.CRS.EPSG3857 : L.CRS.Simple;
  const at = (x, y) => crs.projection.unproject(L.point(x, y));
  const boundsOf = ([left, bottom, right, top]) => L.latLngBounds(at(left, bottom), at(right, top));

  const map = L.map("map", {
    crs, zoomSnap: data.tiled ? 1 : 0.25, zoomDelta: 1, minZoom: -8, maxZoom: 26, zoomControl: false, attributionControl: false,
  });
  const narrow = window.innerWidth <= 640;
  if (narrow) document.getElementById("side").open = false;
  L.control.zoom({ position: narrow ? "bottomright" : "topleft" }).addTo(map);
  if (data.mercator) L.control.scale({ imperial: false, maxWidth: 180, position: "bottomleft" }).addTo(map);
  map.fitBounds(boundsOf(data.bounds), { paddingTopLeft: [16, 16], paddingBottomRight: [narrow ? 16 : 328, 16], animate: false });
  for (const [name, z] of [["scenes", 210], ["doubts", 220], ["labels", 230], ["polygons", 240]]) {
    map.createPane(name).style.zIndex = z;
  }

  // --- pictures -------------------------------------------------------------------------------------------------

  const groups = { scenes: [], doubts: [], labels: [], polygons: [] };

  for (const scene of data.scenes) {
    groups.scenes.push(scene.tiles
      ? L.tileLayer(scene.tiles, {
        pane: "scenes", bounds: boundsOf(scene.bounds), noWrap: true, minNativeZoom: scene.zooms[0],
        maxNativeZoom: scene.zooms[1], minZoom: -8, maxZoom: 26,
      })
      : L.imageOverlay(scene.picture, boundsOf(scene.bounds), { pane: "scenes", className: "scene", alt: scene.name }));
  }

  const rgb = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const between = (ramp, share) => {
    const place = share * (ramp.length - 1), i = Math.min(Math.floor(place), ramp.length - 2);
    const [low, high] = [rgb(ramp[i]), rgb(ramp[i + 1])];
    return low.map((value, c) => Math.round(value + (place - i) * (high[c] - value)));
  };

  for (const picture of pictures) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = picture.size;
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const words = new Uint32Array(image.data.buffer);
    const table = new Uint32Array(256);
    const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
    const word = ([r, g, b]) => (little ? (255 << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | 255) >>> 0;
    picture.repaint = () => {
      table.fill(0);
      if (picture.ramp) {
        for (let v = 1; v <= 101; v++) table[v] = word(between(picture.ramp, (v - 1) / 100));
      } else {
        picture.classes.forEach((k, v) => { if (k !== null && !state.hidden.has(k)) table[v] = word(rgb(data.classes[k].color)); });
      }
      const least = state.least / 10 + 1, sure = picture.sure;
      for (let i = 0; i < words.length; i++) {
        words[i] = sure && sure[i] !== 0 && sure[i] < least ? 0 : table[picture.values[i]];
      }
      context.putImageData(image, 0, 0);
    };
    picture.repaint();
    const layer = L.svgOverlay(canvas, boundsOf(picture.bounds), { pane: picture.ramp ? "doubts" : "labels", className: "pixels" });
    groups[picture.ramp ? "doubts" : "labels"].push(layer);
  }

  // --- polygons -------------------------------------------------------------------------------------------------

  const colors = data.classes.map((item) => item.color);
  const PADDING = 0.25;

  // From steps of a lattice to pixels of the map at a zoom: factors and offsets of x and y.
  function intoPixels(file, zoom, corner, ratio) {
    const t = crs.transformation, scale = crs.scale(zoom);
    const origin = t.transform(L.point(file.origin), scale);
    const one = t.transform(L.point(file.origin[0] + file.step, file.origin[1] + file.step), scale);
    return [(one.x - origin.x) * ratio, (origin.x - corner.x) * ratio, (one.y - origin.y) * ratio, (origin.y - corner.y) * ratio];
  }

  const Polygons = L.Layer.extend({
    options: { pane: "polygons" },
    onAdd() {
      this.canvas = L.DomUtil.create("canvas", "leaflet-zoom-animated polygons", this.getPane());
      this.repaint();
    },
    onRemove() { this.canvas.remove(); },
    getEvents() {
      return { moveend: this.repaint, resize: this.repaint, zoomanim: this.follow };
    },
    follow(event) {
      const scale = map.getZoomScale(event.zoom, this.zoom);
      const corner = map._latLngBoundsToNewLayerBounds(this.bounds, event.zoom, event.center).min;
      L.DomUtil.setTransform(this.canvas, corner, scale);
    },
    repaint() {
      const size = map.getSize(), ratio = window.devicePixelRatio || 1;
      const start = size.multiplyBy(-PADDING).round(), extent = size.multiplyBy(1 + 2 * PADDING).round();
      const corner = map.getPixelBounds().min.add(start);
      this.zoom = map.getZoom();
      this.bounds = L.latLngBounds(map.containerPointToLatLng(start), map.containerPointToLatLng(start.add(extent)));
      this.canvas.width = extent.x * ratio;
      this.canvas.height = extent.y * ratio;
      this.canvas.style.width = `${extent.x}px`;
      this.canvas.style.height = `${extent.y}px`;
      L.DomUtil.setTransform(this.canvas, map.containerPointToLayerPoint(start), 1);
      const context = this.canvas.getContext("2d");
      context.lineJoin = "round";
      context.lineWidth = 1.25 * ratio;
      for (const file of files) paint(context, file, intoPixels(file, this.zoom, corner, ratio), ratio);
    },
  });

  function paint(context, file, [ax, bx, ay, by], ratio) {
    const { width, height } = context.canvas;
    const { features, rings, xy, boxes } = file;
    const outline = Math.min(1, 2 * state.opacity);
    for (let f = 0; f < file.count; f++) {
      if (!isShown(file, f)) continue;
      const x0 = boxes[4 * f] * ax + bx, x1 = boxes[4 * f + 2] * ax + bx;
      const y0 = boxes[4 * f + 1] * ay + by, y1 = boxes[4 * f + 3] * ay + by;
      if (x1 < 0 || x0 > width || Math.max(y0, y1) < 0 || Math.min(y0, y1) > height) continue;
      context.fillStyle = context.strokeStyle = colors[file.of[f]];
      const side = Math.max(x1 - x0, Math.abs(y1 - y0));
      context.globalAlpha = side < 4 * ratio ? outline : state.opacity;
      if (side < ratio) {
        context.fillRect(x0, Math.min(y0, y1), ratio, ratio);
        continue;
      }
      context.beginPath();
      for (let r = features[f]; r < features[f + 1]; r++) {
        for (let p = rings[r]; p < rings[r + 1]; p++) context.lineTo(xy[2 * p] * ax + bx, xy[2 * p + 1] * ay + by);
        context.closePath();
        if (r + 1 < features[f + 1]) { const p = rings[r + 1]; context.moveTo(xy[2 * p] * ax + bx, xy[2 * p + 1] * ay + by); }
      }
      context.fill("evenodd");
      if (side > 8 * ratio) {
        context.globalAlpha = outline;
        context.stroke();
      }
    }
  }

  if (files.some((file) => file.count)) groups.polygons.push(new Polygons());

  function repaint() {
    for (const layer of groups.polygons) if (map.hasLayer(layer)) layer.repaint();
    for (const picture of pictures) if (!picture.ramp) picture.repaint();
  }

  // --- a click --------------------------------------------------------------------------------------------------

  function hit(file, x, y) {
    const { features, rings, xy, boxes } = file;
    for (let f = file.count - 1; f >= 0; f--) {
      if (x < boxes[4 * f] || x > boxes[4 * f + 2] || y < boxes[4 * f + 1] || y > boxes[4 * f + 3]) continue;
      if (!isShown(file, f)) continue;
      let inside = false;
      for (let r = features[f]; r < features[f + 1]; r++) {
        for (let p = rings[r], q = rings[r + 1] - 1; p < rings[r + 1]; q = p++) {
          const yp = xy[2 * p + 1], yq = xy[2 * q + 1];
          if ((yp > y) !== (yq > y) && x < ((xy[2 * q] - xy[2 * p]) * (y - yp)) / (yq - yp) + xy[2 * p]) inside = !inside;
        }
      }
      if (inside) return f;
    }
    return -1;
  }

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const swatch = (color) => {
    const made = element("span", "swatch");
    made.style.backgroundColor = color;
    return made;
  };
  const told = (value) => value === null ? "–"
    : typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 1 ? 4 : 2, useGrouping: !Number.isInteger(value) || Math.abs(value) > 99999 })
    : String(value);
  let mark = null;

  function attributes(file, f) {
    const card = element("div", "attributes"), head = element("h2");
    head.append(swatch(colors[file.of[f]]), data.classes[file.of[f]].name);
    const table = element("table");
    for (const column of file.columns) {
      const row = element("tr");
      row.append(element("th", "", column.name), element("td", "", told(column.values[f])));
      table.append(row);
    }
    card.append(head, table);
    return card;
  }

  map.on("click", (event) => {
    if (mark) mark.remove();
    mark = null;
    if (!groups.polygons.some((layer) => map.hasLayer(layer))) return;
    const place = crs.projection.project(event.latlng);
    for (let n = files.length - 1; n >= 0; n--) {
      const file = files[n], { step, origin, features, rings, xy } = file;
      const f = hit(file, (place.x - origin[0]) / step, (place.y - origin[1]) / step);
      if (f < 0) continue;
      const lines = [];
      for (let r = features[f]; r < features[f + 1]; r++) {
        const line = [];
        for (let p = rings[r]; p < rings[r + 1]; p++) line.push(at(origin[0] + xy[2 * p] * step, origin[1] + xy[2 * p + 1] * step));
        lines.push(line);
      }
      mark = L.layerGroup([
        L.polygon(lines, { color: "#111", weight: 5, opacity: 0.75, fill: false, interactive: false }),
        L.polygon(lines, { color: "#fff", weight: 2.5, fill: false, interactive: false }),
      ]).addTo(map);
      L.popup({ maxWidth: 320, maxHeight: 360 }).setLatLng(event.latlng).setContent(attributes(file, f)).openOn(map);
      return;
    }
  });
  map.on("popupclose", () => { if (mark) mark.remove(); mark = null; });

  // --- the panel ------------------------------------------------------------------------------------------------

  const panel = document.getElementById("panel");
  L.DomEvent.disableClickPropagation(panel);
  L.DomEvent.disableScrollPropagation(panel);

  function section(title) {
    const made = element("section");
    made.append(element("h2", "", title));
    panel.append(made);
    return made;
  }
  function check(label, checked, change) {
    const line = element("label", "line"), box = element("input");
    box.type = "checkbox";
    box.checked = checked;
    box.addEventListener("change", () => change(box.checked));
    line.append(box, ...label);
    return line;
  }
  function slider(id, least, most, step, value, change) {
    const made = element("input");
    Object.assign(made, { id, type: "range", min: least, max: most, step, value });
    made.addEventListener("input", () => change(Number(made.value)));
    return made;
  }

  const layers = section("Layers");
  const titles = { polygons: "Polygons", labels: "Labels", doubts: data.doubts, scenes: "Scene" };
  for (const [name, title] of Object.entries(titles)) {
    if (!groups[name].length) continue;
    const labels = data["labels first"] || !groups.polygons.length;
    const first = name === "scenes" || (name === "polygons" && !data["labels first"]) || (name === "labels" && labels)
      || (name === "doubts" && !groups.polygons.length && !groups.labels.length);
    const toggle = (on) => groups[name].forEach((layer) => (on ? layer.addTo(map) : layer.remove()));
    toggle(first);
    const line = check([element("span", "grow", title)], first, toggle);
    line.querySelector("input").id = `layer-${name}`;
    layers.append(line);
    if (name === "doubts") {
      for (const picture of pictures.filter((p) => p.ramp)) {
        const bar = element("div", "ramp");
        bar.style.background = `linear-gradient(to right, ${picture.ramp.join(", ")})`;
        const ends = element("div", "ends");
        ends.append(element("span", "", "0"), element("span", "", picture.name), element("span", "", "1"));
        layers.append(bar, ends);
      }
    }
  }
  if (groups.polygons.length || groups.labels.length) {
    const line = element("label", "stacked");
    const fade = (value) => {
      state.opacity = value / 100;
      map.getPane("labels").style.opacity = Math.min(1, state.opacity + 0.1);
      groups.polygons.forEach((layer) => { if (map.hasLayer(layer)) layer.repaint(); });
    };
    line.append(element("span", "", "Opacity"), slider("opacity", 0, 100, 1, 100 * state.opacity, fade));
    layers.append(line);
    fade(100 * state.opacity);
  }

  const numbered = (n) => n.toLocaleString("en");
  const area = (m2) => m2 >= 1e6 ? `${told(m2 / 1e6)} km²` : m2 >= 1e5 ? `${told(m2 / 1e4)} ha` : `${numbered(Math.round(m2))} m²`;

  if (data.classes.length) {
    const legend = section("Classes");
    legend.id = "legend";
    data.classes.forEach((item, k) => {
      const name = element("span", "grow", item.name);
      name.title = item.name;
      const size = element("span", "size", item.area_m2 ? area(item.area_m2) : item.count ? numbered(item.count) : "");
      if (item.count) size.title = `${numbered(item.count)} polygons`;
      legend.append(check([swatch(item.color), name, size], true, (on) => {
        state.hidden[on ? "delete" : "add"](k);
        map.closePopup();
        repaint();
        count();
      }));
    });
  }

  const every = files.reduce((sum, file) => sum + file.count, 0);
  const sureAtAll = files.some((file) => file.sure.some((value) => value > 0)) || pictures.some((p) => p.sure);
  const bins = new Array(25).fill(0);
  let histogram = null;

  function drawHistogram() {
    const context = histogram.getContext("2d"), width = histogram.width / bins.length, most = Math.max(...bins, 1);
    context.clearRect(0, 0, histogram.width, histogram.height);
    bins.forEach((number, i) => {
      const height = number ? Math.max(2, (number / most) * histogram.height) : 0;
      context.fillStyle = (i + 1) / bins.length > state.least / 1000 ? "#4c78a8" : "#ccd3da";
      context.fillRect(i * width + 1, histogram.height - height, width - 2, height);
    });
  }
  if (sureAtAll) {
    const confidence = section("Confidence");
    if (every) {
      for (const file of files) file.sure.forEach((value) => { if (value) bins[Math.min(bins.length - 1, Math.floor(((value - 1) / 1000) * bins.length))]++; });
      histogram = element("canvas", "histogram");
      [histogram.width, histogram.height] = [520, 72];
      confidence.append(histogram);
    }
    const value = element("output", "", "0.00");
    const line = element("label", "stacked");
    line.append(slider("confidence", 0, 100, 1, 0, (least) => {
      state.least = least * 10;
      value.textContent = (least / 100).toFixed(2);
      map.closePopup();
      repaint();
      count();
    }));
    const words = element("div", "ends");
    words.append(element("span", "", "shown from"), value, element("span", "", "on"));
    confidence.append(line, words);
  }
  const counter = every ? section("Polygons") : null;
  const counted = element("p");
  counted.id = "count";
  function count() {
    let shown = 0;
    for (const file of files) for (let f = 0; f < file.count; f++) if (isShown(file, f)) shown++;
    counted.textContent = shown === every ? `${numbered(every)} shown` : `${numbered(shown)} of ${numbered(every)} shown`;
    if (histogram) drawHistogram();
  }
  if (counter) {
    counter.append(counted);
    for (const note of data.notes) counter.append(element("p", "note", note));
  }
  count();
  document.body.dataset.ready = "yes";
})().catch((error) => {
  const told = document.createElement("p");
  told.className = "failed";
  told.textContent = `This map could not be shown (${error.message}). It needs a browser of 2023 or newer.`;
  document.body.append(told);
});
