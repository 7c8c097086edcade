// The cameras from above as SVG: for browsers without WebGL. The first camera looks up the page.
import { cameraColor, svg } from './dom.js'
import { place, reach } from './poses.js'

const SIDE = 420

/** cameras, detours, truth: [{index, matrix}]; fov: degrees; title: what it shows, for screen readers. */
export function planFromAbove({ cameras, detours, truth, fov, title }) {
  const depth = Math.min(0.6, 0.34 * reach(cameras, detours, truth))
  const wedges = [...cameras, ...detours, ...truth].map(({ matrix }) => wedge(matrix, depth, fov))
  const all = wedges.flat()
  const [low, high] = [0, 1].map((axis) => all.map((point) => point[axis])).reduce(
    ([lows, highs], values) => [[...lows, Math.min(...values)], [...highs, Math.max(...values)]], [[], []])
  const extent = 1.25 * Math.max(high[0] - low[0], high[1] - low[1], 0.5)
  const middle = [0, 1].map((axis) => (low[axis] + high[axis]) / 2)
  const pixel = ([x, y]) => [SIDE / 2 + ((x - middle[0]) * SIDE) / extent, SIDE / 2 - ((y - middle[1]) * SIDE) / extent]
  const points = (list) => list.map((point) => pixel(point).map((value) => value.toFixed(1)).join(',')).join(' ')
  const drawn = (list, kind, color) => list.map((camera) => svg('polygon', {
    points: points(wedge(camera.matrix, depth, fov)), class: kind, stroke: color(camera.index), fill: color(camera.index),
  }))
  const centers = cameras.map(({ matrix }) => level(place(matrix)))
  return svg('svg', { viewBox: `0 0 ${SIDE} ${SIDE}`, class: 'plan', role: 'img', 'aria-label': title },
    grid(middle, extent, pixel),
    drawn(truth.filter(({ index }) => index), 'truth', () => 'var(--good)'),
    drawn(detours, 'detour', cameraColor),
    drawn(cameras, 'seen', cameraColor),
    svg('polyline', { points: points(centers), class: 'way' }),
    cameras.map(({ index, matrix }) => {
      const [x, y] = pixel(level(place(matrix)))
      return svg('g', {},
        svg('circle', { cx: x, cy: y, r: 10, fill: cameraColor(index) }),
        svg('text', { x, y: y + 4.5, class: 'number' }, String(index)))
    }))
}

const level = ([x, , z]) => [x, z]

function wedge(matrix, depth, fov) {
  const [x, z] = level(place(matrix))
  const [ax, az] = [matrix[0][2], matrix[2][2]]
  const half = (fov * Math.PI) / 360
  const end = (turn) => [
    x + (depth / Math.cos(half)) * (ax * Math.cos(turn) + az * Math.sin(turn)),
    z + (depth / Math.cos(half)) * (az * Math.cos(turn) - ax * Math.sin(turn)),
  ]
  return [[x, z], end(-half), end(half)]
}

function grid(middle, extent, pixel) {
  const step = extent > 15 ? 5 : 1
  const lines = []
  for (const axis of [0, 1]) {
    for (let at = Math.ceil((middle[axis] - extent / 2) / step) * step; at < middle[axis] + extent / 2; at += step) {
      const value = pixel(axis === 0 ? [at, 0] : [0, at])[axis]
      const [x1, y1, x2, y2] = axis === 0 ? [value, 0, value, SIDE] : [0, value, SIDE, value]
      lines.push(svg('line', { x1, y1, x2, y2 }))
    }
  }
  return svg('g', { class: 'grid' }, lines)
}
