// The page of geoseg view. Tiles of imagery come as pictures, those of class maps as one byte a pixel, which are coloured
// here: so classes can be switched, and are known under the pointer, without asking the server again.
"use strict";

const saved = window.GEOSEG_SAVED; // files of a page that was saved whole: path → base64
const TILE = 256, NODATA = 255, MOST_TILES = 800;
const RIGHT = "right as it is", IGNORE = "ignore";
const OWN_COLORS = { [RIGHT]: "#ffffff", [IGNORE]: "#101010" };
const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]; // viridis: dark where the network hardly knew
const DECK = ["#e4572e", "#17bebb", "#ffc914", "#76b041", "#9b5de5", "#f15bb5", "#00bbf9", "#8d6a4f", "#b0b0b0"];

const $ = (id) => document.getElementById(id);
const layers = new Map(); // number → what the server says of the layer, and how it is shown: on, opacity, hidden, band
const maps = []; // the map, and while swiping the one on the right of the line
const tiles = new Map(); // "number/z/x/y/band/state" → promise of bytes; the least used first
let plane = null, windows = [], current = -1, blinking = false, swipe = 0.5;

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Files: from the server, or from within a saved page

async function load(path, signal) {
  if (saved) {
    if (!(path in saved)) return null;
    const stream = new Blob([Uint8Array.from(atob(saved[path]), (c) => c.charCodeAt(0))]).stream();
    return new Response(stream.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }
  const response = await fetch(path, { signal });
  if (response.status === 204) return null;
  if (!response.ok) throw new Error(await reason(response));
  return response.arrayBuffer();
}

async function reason(response) {
  try {
    const { error, hint } = await response.json();
    return hint ? `${error} (${hint})` : error;
  } catch {
    return `the server answered ${response.status}`;
  }
}

function bytes(layer, z, x, y, band) {
  const path = `tiles/${layer.id}/${z}/${x}/${y}/${band}`, key = `${path}?${layer.state}`;
  let found = tiles.get(key);
  tiles.delete(key);
  found ??= load(saved ? path : key).then((data) => data && new Uint8Array(data), (error) => {
    tiles.delete(key);
    throw error;
  });
  tiles.set(key, found);
  if (tiles.size > MOST_TILES) tiles.delete(tiles.keys().next().value);
  return found;
}

function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

function palette(layer) {
  const colors = new Uint8ClampedArray(4 * 256);
  if (layer.kind === "share") {
    for (let value = 0; value < NODATA; value++) {
      const at = (value / 254) * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
      const [from, to] = [rgb(RAMP[low]), rgb(RAMP[low + 1])];
      colors.set([...from.map((c, i) => c + (to[i] - c) * (at - low)), 255], 4 * value);
    }
  } else {
    for (const c of layer.classes) if (!layer.hidden.has(c.name)) colors.set([...rgb(c.color), 255], 4 * c.id);
  }
  return new Uint32Array(colors.buffer);
}

maplibregl.addProtocol("geoseg", async ({ url }, abort) => {
  const [, number, z, x, y, band] = url.match(/(\d+)\/(\d+)\/(\d+)\/(\d+)\/(\d+)/).map(Number);
  const layer = layers.get(number);
  if (layer.kind === "image" || layer.kind === "vector") {
    const path = `tiles/${number}/${z}/${x}/${y}/${band}`;
    const data = await load(saved ? path : `${path}?${layer.state}`, abort.signal);
    if (data) return { data };
    return { data: layer.kind === "vector" ? new ArrayBuffer(0) : await createImageBitmap(new ImageData(1, 1)) };
  }
  const values = await bytes(layer, z, x, y, band);
  const picture = new ImageData(values ? TILE : 1, values ? TILE : 1);
  if (values) {
    const colors = palette(layer), pixels = new Uint32Array(picture.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = colors[values[i]];
  }
  return { data: await createImageBitmap(picture) };
});

// Maps and their layers

const mercator = ({ lng, lat }) => {
  const radius = 6378137, radians = Math.PI / 180;
  return [radius * lng * radians, radius * Math.asinh(Math.tan(lat * radians))];
};

function address(layer) {
  const drawn = layer.kind === "classes" ? [...layer.hidden].join("|") : "";
  return `geoseg://tiles/${layer.id}/{z}/{x}/{y}/${layer.band}?${encodeURIComponent(layer.state + layer.making + drawn)}`;
}

function color(layer, name) {
  const known = layer.colors ?? {};
  const at = (layer.values ?? []).indexOf(name);
  return known[name] ?? (at < 0 ? "#ffb000" : DECK[at % DECK.length]);
}

function lineColor(layer) {
  if (layer.fields.includes("color")) return ["to-color", ["get", "color"], "#ffb000"]; // PMTiles of geoseg
  const pairs = (layer.values ?? []).flatMap((name) => [name, color(layer, name)]);
  return pairs.length ? ["match", ["to-string", ["get", layer.field]], ...pairs, "#ffb000"] : "#ffb000";
}

function isDrawn(layer, map) {
  const [left, right] = [Number($("swipe-left").value), Number($("swipe-right").value)];
  if ($("swipe").checked && left !== right) {
    if (layer.id === left || layer.id === right) return layer.id === (map === maps[0] ? left : right);
  }
  return layer.on && !(blinking && layer.kind === "classes");
}

function parts(layer) {
  return layer.kind === "vector" ? ["fill", "line", "point"].map((part) => `${part}${layer.id}`) : [`raster${layer.id}`];
}

function addLayer(map, layer) {
  if (!layer.bounds) return;
  const source = `layer${layer.id}`, [minzoom, maxzoom] = layer.zooms;
  map.addresses[layer.id] = address(layer);
  const shared = { tiles: [address(layer)], bounds: layer.bounds, minzoom, maxzoom };
  if (layer.kind !== "vector") {
    map.addSource(source, { type: "raster", tileSize: TILE, ...shared });
    const paint = { "raster-fade-duration": 0, "raster-opacity": layer.opacity };
    if (layer.kind !== "image") paint["raster-resampling"] = "nearest";
    map.addLayer({ id: `raster${layer.id}`, type: "raster", source, paint }, "first-mark");
    return;
  }
  const common = { source, "source-layer": layer.layer };
  map.addSource(source, { type: "vector", ...shared });
  map.addLayer({ id: `fill${layer.id}`, type: "fill", ...common, paint: { "fill-color": "rgba(0,0,0,0)" } }, "first-mark");
  const sharp = layer.full || maxzoom - 3; // where outlines begin to have room
  const width = ["interpolate", ["linear"], ["zoom"], sharp, 0.8, sharp + 5, 2.5];
  const line = { "line-color": lineColor(layer), "line-width": width, "line-opacity": layer.opacity };
  map.addLayer({ id: `line${layer.id}`, type: "line", ...common, paint: line }, "first-mark");
  const circle = { "circle-color": lineColor(layer), "circle-radius": 4, "circle-opacity": layer.opacity };
  const filter = ["==", ["geometry-type"], "Point"];
  map.addLayer({ id: `point${layer.id}`, type: "circle", ...common, filter, paint: circle }, "first-mark");
}

function removeLayer(map, layer) {
  for (const part of parts(layer)) if (map.getLayer(part)) map.removeLayer(part);
  if (map.getSource(`layer${layer.id}`)) map.removeSource(`layer${layer.id}`);
}

function restyle(layer) {
  for (const map of maps.filter((m) => m.isReady)) {
    for (const part of parts(layer)) {
      if (!map.getLayer(part)) continue;
      map.setLayoutProperty(part, "visibility", isDrawn(layer, map) ? "visible" : "none");
      const property = part.startsWith("raster") ? "raster" : part.startsWith("line") ? "line" : part.startsWith("point") ? "circle" : null;
      if (property) map.setPaintProperty(part, `${property}-opacity`, layer.opacity);
      if (layer.kind === "vector" && layer.field) {
        const shown = ["!", ["in", ["to-string", ["get", layer.field]], ["literal", [...layer.hidden]]]];
        map.setFilter(part, part.startsWith("point") ? ["all", ["==", ["geometry-type"], "Point"], shown] : shown);
      }
    }
    const source = map.getSource(`layer${layer.id}`);
    if (source && map.addresses[layer.id] !== address(layer)) source.setTiles([(map.addresses[layer.id] = address(layer))]);
  }
}

function restyleAll() {
  for (const layer of layers.values()) restyle(layer);
}

const EMPTY = { type: "FeatureCollection", features: [] };

function makeMap(container, options) {
  const style = {
    version: 8,
    sources: { marks: { type: "geojson", data: EMPTY }, drawing: { type: "geojson", data: EMPTY } },
    layers: [
      { id: "first-mark", type: "fill", source: "marks", filter: ["==", ["get", "mark"], "correction"], paint: { "fill-color": ["get", "color"], "fill-opacity": 0.3 } },
      { id: "mark-halo", type: "line", source: "marks", paint: { "line-color": "#000000", "line-width": 5, "line-opacity": 0.6 } },
      { id: "mark-line", type: "line", source: "marks", paint: { "line-color": ["coalesce", ["get", "color"], "#ffffff"], "line-width": 2.5 } },
      { id: "draw-line", type: "line", source: "drawing", paint: { "line-color": "#ffffff", "line-width": 2, "line-dasharray": [2, 1] } },
      { id: "draw-corner", type: "circle", source: "drawing", filter: ["==", ["geometry-type"], "Point"], paint: { "circle-radius": ["case", ["get", "between"], 4, 6], "circle-color": "#ffffff", "circle-stroke-color": "#0b62c4", "circle-stroke-width": 2, "circle-opacity": ["case", ["get", "between"], 0.6, 1] } },
    ],
  };
  if (basemap) {
    style.sources.basemap = { type: "raster", tiles: [basemap], tileSize: 256 };
    style.layers.unshift({ id: "basemap", type: "raster", source: "basemap" });
  }
  const map = new maplibregl.Map({
    container, style, attributionControl: false, fadeDuration: 0, renderWorldCopies: false, maxZoom: 24, maxPitch: 0,
    dragRotate: false, pitchWithRotate: false, rollEnabled: false, ...options,
  });
  map.addresses = {}; // of the tiles of each layer, as this map knows them
  map.touchZoomRotate.disableRotation();
  map.keyboard.disableRotation();
  map.on("error", ({ error }) => error.name !== "AbortError" && notice(error.message));
  map.once("styledata", () => {
    map.isReady = true;
    for (const layer of layers.values()) addLayer(map, layer);
    restyleAll();
    showMarks();
  });
  return map;
}

// Swipe: a second map over the first one, cut off at the line

function setSwipe() {
  const on = $("swipe").checked;
  $("second").hidden = $("swipe-line").hidden = !on;
  if (on && maps.length === 1) {
    maps.push(makeMap("second", { interactive: false, ...camera(maps[0]) }));
  } else if (!on && maps.length === 2) {
    maps.pop().remove();
  }
  moveSwipe(swipe);
  restyleAll();
}

function moveSwipe(share) {
  swipe = Math.min(Math.max(share, 0), 1);
  $("swipe-line").style.left = `${100 * swipe}%`;
  $("swipe-line").setAttribute("aria-valuenow", Math.round(100 * swipe));
  $("second").style.clipPath = `inset(0 0 0 ${100 * swipe}%)`;
}

const camera = (map) => ({ center: map.getCenter(), zoom: map.getZoom() });

// The panel

function notice(text) {
  const known = [...$("notices").children].some((p) => p.dataset.text === text);
  if (known) return;
  const line = el("p", {}, el("button", { type: "button", title: "Close", onclick: () => line.remove() }, "×"), text);
  line.dataset.text = text;
  $("notices").append(line);
}

function zoomTo(bounds) {
  if (bounds) maps[0].fitBounds(bounds, { padding: 30, duration: 0, maxZoom: 22 });
}

// What features are not shown at this zoom level, if any
function missing(layer) {
  if (layer.kind !== "vector" || !layer.bounds || !maps.length) return null;
  const zoom = Math.floor(maps[0].getZoom());
  if (zoom < layer.zooms[0]) return "zoom in to see its outlines";
  if (layer.partial && zoom < layer.full) return "its largest are shown: zoom in to see all";
  return layer.crowded ? "some places hold too many to show at once: zoom in there" : null;
}

function fillLayers() {
  $("layers").replaceChildren(...[...layers.values()].reverse().map((layer) => {
    const box = el("input", { type: "checkbox", checked: layer.on, onchange: () => {
      layer.on = box.checked;
      restyle(layer);
      fillLegend();
    } });
    const slider = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: layer.opacity, "aria-label": `Opacity of ${layer.name}`, oninput: () => {
      layer.opacity = Number(slider.value);
      restyle(layer);
    } });
    const bands = layer.bands.length < 2 ? null : el("select", { "aria-label": "Class", onchange: (event) => {
      layer.band = event.target.selectedIndex + 1;
      restyle(layer);
    } }, ...layer.bands.map((name) => el("option", {}, name)));
    if (bands) bands.selectedIndex = layer.band - 1;
    const zoom = el("button", { type: "button", className: "zoom", disabled: !layer.bounds, onclick: () => zoomTo(layer.bounds) }, "Zoom to");
    const trouble = layer.error ?? (layer.making !== null ? `being read, once: ${Math.floor(100 * layer.making)} %`
      : missing(layer));
    const item = el("li", { title: layer.path },
      el("div", { className: "name" }, el("label", {}, box, el("span", {}, layer.name)), zoom),
      el("div", { className: "controls" }, slider, bands),
      trouble ? el("div", { className: "trouble" }, trouble) : null);
    item.dataset.layer = layer.id;
    return item;
  }));
  const drawn = [...layers.values()].filter((layer) => layer.bounds);
  for (const [id, preferred] of [["swipe-left", drawn.find((l) => l.kind === "image")], ["swipe-right", drawn.findLast((l) => l.kind === "classes")]]) {
    const before = $(id).value;
    $(id).replaceChildren(...drawn.map((layer) => el("option", { value: layer.id }, layer.name)));
    $(id).value = before || (preferred ?? drawn.at(-1))?.id;
  }
  $("swipe-row").hidden = drawn.length < 2;
}

const meets = (a, b) => a[0] < b[2] && a[2] > b[0] && a[1] < b[3] && a[3] > b[1];

// The map that the legend is of and that corrections belong to: the uppermost one in view, else features with classes
function classMap() {
  const on = [...layers.values()].filter((layer) => layer.on && layer.bounds);
  const near = maps.length ? on.filter((layer) => meets(layer.bounds, maps[0].getBounds().toArray().flat())) : on;
  const shown = near.length ? near : on;
  return shown.findLast((l) => l.kind === "classes") ?? shown.findLast((l) => l.kind === "vector" && l.values.length);
}

function area(value, layer) {
  if (value === null || value === undefined) return "";
  const digits = value < 100 ? 2 : 0;
  const text = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${layer.about ? "≈ " : ""}${text} ${layer.unit}`;
}

function legendClasses(layer) {
  return layer.classes ?? layer.values.map((name) => ({ name, color: color(layer, name) }));
}

let legendOf;
function fillLegend() {
  const layer = (legendOf = classMap());
  if (layer?.corrections && ![null, layer.id].includes(correcting.layer) && isIdle()) loadCorrections();
  $("legend-section").hidden = !layer;
  if (!layer) return;
  $("legend-of").textContent = layer.name;
  $("legend").replaceChildren(...legendClasses(layer).map((c) => {
    const box = el("input", { type: "checkbox", checked: !layer.hidden.has(c.name), onchange: () => switchClass(layer, c.name) });
    const swatch = el("span", { className: "swatch" });
    swatch.style.background = c.color;
    return el("li", {}, el("label", {}, box, swatch, el("span", { className: "name" }, c.name), el("span", { className: "area" }, area(c.area, layer))));
  }));
}

// A class is switched in the map of the legend and in all features of that name
function switchClass(layer, name) {
  const hide = !layer.hidden.has(name);
  for (const other of layers.values()) {
    if (other !== layer && !(other.kind === "vector" && other.values.includes(name))) continue;
    other.hidden[hide ? "add" : "delete"](name);
    restyle(other);
  }
  fillLegend();
}

function fillWindows() {
  $("windows-section").hidden = !windows.length;
  $("windows-title").textContent = windows[0]?.kind ?? "Windows";
  $("windows").replaceChildren(...windows.map((place, at) =>
    el("li", {}, el("button", { type: "button", onclick: () => goTo(at) }, el("span", {}, place.name), el("small", {}, place.note)))));
}

function goTo(at) {
  if (!windows.length) return;
  current = (at + windows.length) % windows.length;
  for (const [i, button] of [...$("windows").querySelectorAll("button")].entries()) {
    button.setAttribute("aria-current", i === current);
    if (i === current) button.scrollIntoView({ block: "nearest" });
  }
  zoomTo(windows[current].bounds);
  showMarks();
}

const number = (value) => (Number.isInteger(value) ? String(value) : Number(value.toPrecision(6)).toString());

// What lies under the pointer

function place(at) {
  if (!plane) return `${at.lat.toFixed(6)}°, ${at.lng.toFixed(6)}°`;
  const [x, y] = mercator(at), [left, top, unit] = plane;
  return left === 0 && top === 0 && unit === 1 ? `column ${Math.floor(x)}, row ${Math.floor(-y)}` : `x ${number(x / unit + left)}, y ${number(y / unit + top)}`;
}

async function valueAt(layer, at, band = 1) {
  const [west, south, east, north] = layer.bounds;
  if (at.lng < west || at.lng > east || at.lat < south || at.lat > north) return NODATA;
  const z = Math.min(Math.max(Math.round(maps[0].getZoom() + 1), layer.zooms[0]), layer.zooms[1]);
  const [x, y] = mercator(at).map((metres, axis) => ((axis ? -metres : metres) / (2 * Math.PI * 6378137) + 0.5) * 2 ** z * TILE);
  const values = await bytes(layer, z, Math.floor(x / TILE), Math.floor(y / TILE), band);
  return values ? values[(Math.floor(y) % TILE) * TILE + (Math.floor(x) % TILE)] : NODATA;
}

let asked = 0;
async function showUnder(at) {
  const ticket = ++asked;
  $("place").textContent = place(at);
  let text = "";
  try {
    for (const map of [...layers.values()].filter((l) => l.on && l.bounds && l.kind === "classes").reverse()) {
      const id = await valueAt(map, at);
      if (id === NODATA) continue;
      text = map.classes.find((c) => c.id === id)?.name ?? `class ${id}`;
      const sure = [...layers.values()].find((l) => l.of === map.path && l.path.endsWith("_confidence.tif"));
      const share = sure ? await valueAt(sure, at) : NODATA;
      if (share !== NODATA) text += ` ${Math.round((100 * share) / 254)} %`;
      break;
    }
    if (ticket === asked) $("under").textContent = text;
  } catch (error) {
    notice(error.message);
  }
}

function showFeature(event) {
  const drawn = [...layers.values()].filter((l) => l.kind === "vector" && l.on).flatMap(parts).filter((part) => maps[0].getLayer(part));
  const [feature] = drawn.length ? maps[0].queryRenderedFeatures(event.point, { layers: drawn }) : [];
  if (!feature) return;
  const rows = Object.entries(feature.properties).map(([key, value]) => {
    let text = typeof value === "number" ? number(value) : String(value);
    if (key.endsWith("_m2")) text = `${value.toLocaleString("en", { maximumFractionDigits: 1 })} m²`;
    if (key.startsWith("conf") && value <= 1) text = `${Math.round(100 * value)} %`;
    return el("tr", {}, el("th", {}, key), el("td", {}, text));
  });
  new maplibregl.Popup({ maxWidth: "320px" }).setLngLat(event.lngLat).setDOMContent(el("table", {}, ...rows)).addTo(maps[0]);
}

function showScale() {
  const at = maps[0].getCenter(), metres = (2 * Math.PI * 6378137) / (512 * 2 ** maps[0].getZoom());
  const unit = plane ? metres / plane[2] : metres * Math.cos((at.lat * Math.PI) / 180);
  const most = 140 * unit, power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((n) => n * power).find((n) => n <= most);
  const bar = $("scale").firstElementChild;
  bar.style.width = `${length / unit}px`;
  if (plane) bar.textContent = `${number(length)} ${plane[2] === 1 && plane[0] === 0 ? "px" : "units"}`;
  else bar.textContent = length >= 1000 ? `${length / 1000} km` : length >= 1 ? `${length} m` : `${number(100 * length)} cm`;
}

// Corrections: polygons that are saved at once, one edit after another, each taken back by undo

const correcting = { layer: null, features: [], state: "none", history: [], chosen: -1, corners: null, dragged: null, pending: 0, saving: Promise.resolve() };

const isIdle = () => !correcting.pending && !correcting.corners && !correcting.dragged;

async function loadCorrections() {
  const inLegend = classMap(), found = inLegend?.corrections ? inLegend : [...layers.values()].findLast((layer) => layer.corrections);
  $("corrections-section").hidden = !found;
  if (!found) return;
  if (found.id !== correcting.layer) Object.assign(correcting, { layer: found.id, features: [], history: [] });
  $("corrections-of").textContent = found.corrections;
  const chosen = $("correct-class").value;
  $("correct-class").replaceChildren(...correctionClasses().map((name) => el("option", {}, name)));
  if (chosen) $("correct-class").value = chosen;
  const response = await fetch(`corrections/${found.id}`);
  if (!response.ok) return notice(await reason(response));
  const { collection, state } = await response.json();
  Object.assign(correcting, { features: collection.features, state, chosen: -1 });
  fillCorrections();
}

function correctionClasses() {
  return [...layers.get(correcting.layer).classes.map((c) => c.name), RIGHT, IGNORE];
}

function correctionColor(name) {
  return OWN_COLORS[name] ?? layers.get(correcting.layer)?.classes.find((c) => c.name === name)?.color ?? "#ffffff";
}

const replaced = new WeakMap(); // a correction → what an edit made of it

// An edit turns one correction into another one: from null it is drawn, to null deleted. Returns whether it was saved.
function edit(from, to, at, { undoing = false } = {}) {
  correcting.pending += 1;
  const saved = correcting.saving.then(() => {
    while (replaced.has(from)) from = replaced.get(from); // by an edit that was still being saved
    return save({ from, to: to && { ...from, ...to, properties: { ...from?.properties, ...to.properties } }, at }, undoing);
  }).catch((error) => notice(`not saved: ${error.message}`));
  correcting.saving = saved.finally(() => (correcting.pending -= 1));
  return saved;
}

async function save(change, undoing, isAgain = false) {
  const features = edited(correcting.features, change), before = correcting.state;
  const response = await fetch(`corrections/${correcting.layer}`, { method: "PUT", body: JSON.stringify({ features, state: before }) });
  if (response.ok) {
    correcting.state = (await response.json()).state;
    if (!undoing) correcting.history.push(change);
    if (change.from && change.to) replaced.set(change.from, change.to);
    correcting.features = features;
    correcting.chosen = Math.min(correcting.chosen, features.length - 1);
    fillCorrections();
    return true;
  }
  notice(await reason(response));
  await loadCorrections();
  // What another viewer or program has written meanwhile stays, and the edit comes on top of it.
  return !isAgain && correcting.state !== before && save(change, undoing, true);
}

function edited(features, { from, to, at }) {
  const list = [...features], found = from ? list.findIndex((feature) => isSame(feature, from)) : -1;
  if (found >= 0) list.splice(found, 1, ...(to ? [to] : []));
  else if (to) list.splice(at, 0, to);
  return list;
}

// Corrections that were read from the file anew have coordinates that are rounded otherwise.
function isSame(a, b) {
  const [rings, others] = [a, b].map((feature) => feature.geometry.coordinates.flat(2));
  return a.properties.class === b.properties.class && a.properties.note === b.properties.note
    && rings.length === others.length && rings.every((value, i) => Math.abs(value - others[i]) < 1e-8);
}

async function undo() {
  if (correcting.corners) {
    correcting.corners.pop();
    return fillCorrections();
  }
  const last = correcting.history.pop();
  if (last && !(await edit(last.to, last.from, last.at, { undoing: true }))) correcting.history.push(last);
  fillCorrections();
}

function fillCorrections() {
  $("undo").disabled = !(correcting.corners ?? correcting.history).length;
  $("corrections").replaceChildren(...correcting.features.map((feature, at) => {
    const swatch = el("button", { type: "button", className: "swatch", title: "Choose, to move its corners", onclick: () => choose(at) });
    swatch.style.background = correctionColor(feature.properties.class);
    const select = el("select", { "aria-label": "Class", onchange: () => change(at, { properties: { class: select.value, time: now() } }) },
      ...correctionClasses().map((name) => el("option", { selected: name === feature.properties.class }, name)));
    const remove = el("button", { type: "button", title: "Delete", onclick: () => removeCorrection(at) }, "×");
    return el("li", { className: at === correcting.chosen ? "chosen" : "", title: feature.properties.note }, swatch, select, remove);
  }));
  showMarks();
}

const now = () => new Date().toISOString();

function change(at, part) {
  return edit(correcting.features[at], { properties: { time: now() }, ...part }, at);
}

function removeCorrection(at) {
  correcting.chosen = -1;
  return edit(correcting.features[at], null, at);
}

function choose(at) {
  correcting.chosen = correcting.chosen === at ? -1 : at;
  fillCorrections();
  if (correcting.chosen >= 0) {
    const ring = correcting.features[at].geometry.coordinates[0];
    const bounds = ring.reduce((box, corner) => box.extend(corner), new maplibregl.LngLatBounds(ring[0], ring[0]));
    if (!ring.every((corner) => maps[0].getBounds().contains(corner))) zoomTo(bounds);
  }
}

function showMarks() {
  const features = correcting.features.map((feature) => ({ ...feature, properties: { mark: "correction", color: correctionColor(feature.properties.class) } }));
  if (current >= 0) {
    const [west, south, east, north] = windows[current].bounds;
    features.push({ type: "Feature", properties: {}, geometry: { type: "Polygon", coordinates: [[[west, south], [east, south], [east, north], [west, north], [west, south]]] } });
  }
  const point = (corner, properties) => ({ type: "Feature", properties: { between: false, ...properties }, geometry: { type: "Point", coordinates: corner } });
  const drawing = [];
  if (correcting.corners) {
    const line = [...correcting.corners, ...(correcting.pointer ? [correcting.pointer] : [])];
    if (line.length > 1) drawing.push({ type: "Feature", properties: {}, geometry: { type: "LineString", coordinates: line } });
    drawing.push(...correcting.corners.map((corner) => point(corner)));
  } else if (correcting.features[correcting.chosen]) {
    const ring = correcting.dragged?.ring ?? correcting.features[correcting.chosen].geometry.coordinates[0];
    drawing.push({ type: "Feature", properties: {}, geometry: { type: "LineString", coordinates: ring } });
    ring.slice(0, -1).forEach((corner, at) => {
      const next = ring[at + 1];
      drawing.push(point(corner, { at }), point([(corner[0] + next[0]) / 2, (corner[1] + next[1]) / 2], { at, between: true }));
    });
  }
  for (const map of maps.filter((m) => m.isReady)) {
    map.getSource("marks").setData({ type: "FeatureCollection", features });
    map.getSource("drawing").setData({ type: "FeatureCollection", features: drawing });
  }
}

function setDrawing(on) {
  correcting.corners = on ? [] : null;
  correcting.pointer = null;
  if (on) correcting.chosen = -1;
  $("draw").setAttribute("aria-pressed", on);
  $("draw-hint").hidden = !on;
  maps[0].getCanvas().style.cursor = on ? "crosshair" : "";
  maps[0].doubleClickZoom[on ? "disable" : "enable"]();
  fillCorrections();
}

// How near a place counts as the same, px; fingers are broader.
const reach = (event) => (event.points?.length || event.originalEvent.pointerType === "touch" ? 20 : 9);

function addCorner(event) {
  const { corners } = correcting;
  const isNear = (corner) => corner && maps[0].project(corner).dist(event.point) < reach(event);
  if (corners.length > 2 && isNear(corners[0])) return endDrawing();
  if (isNear(corners.at(-1))) return; // the second click of a double one
  corners.push([event.lngLat.lng, event.lngLat.lat]);
  fillCorrections();
}

async function endDrawing() {
  const { corners } = correcting;
  if (corners.length < 3) return notice("a polygon needs three corners or more");
  setDrawing(false);
  const geometry = { type: "Polygon", coordinates: [[...corners, corners[0]]] };
  const properties = { class: $("correct-class").value, note: $("note").value.trim(), time: now() };
  if (await edit(null, { type: "Feature", geometry, properties }, correcting.features.length)) return void ($("note").value = "");
  setDrawing(true); // with the corners of what could not be saved, so that it can be mended
  correcting.corners = corners;
  fillCorrections();
}

function startDrag(event) {
  const near = new maplibregl.Point(reach(event), reach(event));
  const handles = correcting.chosen < 0 || correcting.corners ? [] : maps[0].queryRenderedFeatures(
    [event.point.sub(near), event.point.add(near)], { layers: ["draw-corner"] });
  const handle = handles.sort((a, b) => a.properties.between - b.properties.between)[0];
  if (!handle) return;
  event.preventDefault(); // the map stays where it is
  const ring = correcting.features[correcting.chosen].geometry.coordinates[0].slice(0, -1);
  let { at, between } = handle.properties;
  if (between) ring.splice(++at, 0, ring[at - 1]);
  if (event.originalEvent.button === 2) {
    if (ring.length > 3) {
      ring.splice(at, 1);
      change(correcting.chosen, { geometry: { type: "Polygon", coordinates: [[...ring, ring[0]]] } });
    }
    return;
  }
  correcting.dragged = { at, ring: [...ring, ring[0]] };
}

function drag({ lngLat }) {
  if (correcting.corners) {
    correcting.pointer = [lngLat.lng, lngLat.lat];
    showMarks();
  }
  if (!correcting.dragged) return;
  const { at, ring } = correcting.dragged;
  ring[at] = [lngLat.lng, lngLat.lat];
  if (at === 0) ring[ring.length - 1] = ring[0];
  showMarks();
}

async function endDrag() {
  const { dragged } = correcting;
  if (!dragged) return;
  await change(correcting.chosen, { geometry: { type: "Polygon", coordinates: [dragged.ring] } });
  correcting.dragged = null;
  showMarks();
}

// Keys

function onKey(event) {
  if (event.target.matches("input[type=text], select, textarea")) return;
  const key = event.key.toLowerCase();
  const layer = classMap(), drawing = correcting.corners;
  if (drawing && key === "enter") endDrawing();
  else if (drawing && key === "escape") setDrawing(false);
  else if (drawing && key === "backspace") undo();
  else if (key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (key === "delete" && correcting.chosen >= 0) removeCorrection(correcting.chosen);
  else if (key === "escape") choose(-1);
  else if (key === " ") { blinking = !blinking; restyleAll(); }
  else if (key === "n") goTo(current + 1);
  else if (key === "p") goTo(current < 0 ? -1 : current - 1);
  else if (key === "d" && correcting.layer !== null) setDrawing(!drawing);
  else if (key >= "1" && key <= "9" && layer && legendClasses(layer)[key - 1]) switchClass(layer, legendClasses(layer)[key - 1].name);
  else return;
  event.preventDefault();
}

// Keeping up with the server

let basemap = null, polling = null;

async function update(isFirst) {
  const state = JSON.parse(new TextDecoder().decode(await load("state")));
  let changed = isFirst;
  plane = state.layers.some((l) => l.zooms && l.bounds) ? state.plane : null;
  for (const facts of state.layers) {
    const old = layers.get(facts.id);
    if (old && JSON.stringify(old.facts) === JSON.stringify(facts)) continue;
    changed = true;
    const fresh = { on: facts.shown, opacity: facts.kind === "classes" && !facts.error ? 0.65 : 1, hidden: new Set(), band: 1 };
    const layer = { ...fresh, ...old, ...facts, facts };
    layers.set(facts.id, layer);
    const moved = !old || old.layer !== layer.layer || JSON.stringify([old.bounds, old.zooms]) !== JSON.stringify([layer.bounds, layer.zooms]);
    for (const map of maps.filter((m) => m.isReady)) {
      if (moved || layer.kind === "vector") {
        if (old) removeLayer(map, old);
        addLayer(map, layer);
      }
    }
    restyle(layer);
    if (layer.error) notice(`${layer.name}: ${layer.error}`);
    else if (old && old.state !== layer.state) notice(`${layer.name} was replaced and is shown anew`);
    if (layer.slow) notice(layer.slow);
  }
  if (changed) {
    fillLayers();
    fillLegend();
  }
  if (isIdle() && correcting.layer !== null && layers.get(correcting.layer).corrected !== correcting.state) await loadCorrections();
  return state;
}

function start(state) {
  document.title = `${state.title} – geoseg`;
  $("title").textContent = state.title;
  ({ windows, basemap } = state);
  const places = state.layers.filter((layer) => layer.bounds);
  const first = places.find((layer) => layer.shown) ?? places[0];
  for (const layer of places) {
    if (!meets(layer.bounds, first.bounds)) notice(`${layer.name} lies elsewhere than ${first.name}: Zoom to shows it`);
  }
  const bounds = windows[0]?.bounds ?? first?.bounds, isKept = location.hash.includes("place=");
  const map = makeMap("map", { hash: "place", bounds, fitBoundsOptions: { padding: 30, maxZoom: 22 } });
  maps.push(map);
  map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "top-right");
  map.on("move", () => {
    maps[1]?.jumpTo(camera(map));
    showScale();
  });
  map.on("mousemove", (event) => { drag(event); showUnder(event.lngLat); });
  map.on("touchmove", drag);
  for (const name of ["mousedown", "touchstart"]) map.on(name, startDrag);
  for (const name of ["mouseup", "touchend"]) map.on(name, endDrag);
  map.on("click", (event) => (correcting.corners ? addCorner(event) : correcting.chosen < 0 && showFeature(event)));
  map.on("dblclick", () => correcting.corners && endDrawing());
  map.on("mouseout", () => ($("under").textContent = $("place").textContent = ""));
  map.once("load", () => { showScale(); fillLayers(); });
  map.on("moveend", () => classMap() !== legendOf && fillLegend());
  map.on("zoomend", () => [...layers.values()].some((layer) => layer.missing !== (layer.missing = missing(layer))) && fillLayers());
  fillWindows();
  if (windows.length && !isKept) map.once("load", () => goTo(0));
}

document.addEventListener("keydown", onKey);
$("swipe").addEventListener("change", setSwipe);
for (const id of ["swipe-left", "swipe-right"]) $(id).addEventListener("change", restyleAll);
$("swipe-line").addEventListener("pointerdown", (event) => {
  event.target.setPointerCapture(event.pointerId);
  event.preventDefault();
});
$("swipe-line").addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  const box = $("map").getBoundingClientRect();
  moveSwipe((event.clientX - box.left) / box.width);
});
$("swipe-line").addEventListener("keydown", ({ key }) => {
  if (key === "ArrowLeft" || key === "ArrowRight") moveSwipe(swipe + (key === "ArrowLeft" ? -0.02 : 0.02));
});
$("draw").addEventListener("click", () => setDrawing(!correcting.corners));
$("undo").addEventListener("click", undo);
$("theme").addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
});
for (const id of ["fold", "unfold"]) $(id).addEventListener("click", () => {
  $("panel").hidden = id === "fold";
  $("unfold").hidden = id !== "fold";
  for (const map of maps) map.resize();
});

update(true).then((state) => {
  start(state);
  loadCorrections();
  if (!saved) polling = setInterval(() => update(false).catch((error) => notice(`geoseg view has ended, or cannot be reached (${error.message})`)), 2000);
}, (error) => notice(error.message));
