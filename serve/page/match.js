// A reply of POST /match as something to look at: both photos, all points, and a line for each pair.
import { detailsBox } from './details.js'
import { el, svg } from './dom.js'
import { problemWords } from './words.js'

const GAP = 0.04
const COLORS = 5

/** Everything about a reply. images: [{url, name}] of the two photos. */
export async function matchOf(reply, images) {
  const sizes = await Promise.all(images.map(sizeOf))
  const { large, below } = matchWords(reply)
  return [
    el('section', { class: 'box answer', 'aria-labelledby': 'answer-heading' },
      el('h2', { id: 'answer-heading', class: 'question' }, 'Which points are one place?'),
      el('p', { class: 'large', id: 'answer' }, large),
      below ? el('p', { class: 'below' }, below) : null,
      reply.problems.length ? el('p', { class: 'faults' },
        `Read this reply with care: ${reply.problems.map(problemWords).join('; ')}.`) : null,
      figureOf(reply, images, sizes)),
    detailsBox(reply),
  ]
}

/** The same in words. */
export function matchWords({ pairs, none, unread, first }) {
  const list = (marks) => marks.join(', ')
  const below = [
    none.length ? `no partner: ${list(none)}` : '', unread.length ? `nothing said that can be read: ${list(unread)}` : '',
  ].filter(Boolean).join('; ')
  return { large: `${pairs.length} of ${first.length} points matched`, below }
}

/** Width and height of a photo as it is seen, upright. */
async function sizeOf({ url }) {
  const image = new Image()
  image.src = url
  await image.decode()
  return [image.naturalWidth, image.naturalHeight]
}

/** Photos of one height beside each other. */
function figureOf(reply, images, sizes) {
  const height = Math.max(...sizes.map(([, high]) => high))
  const scales = sizes.map(([, high]) => height / high)
  const widths = sizes.map(([wide], k) => wide * scales[k])
  const gap = GAP * (widths[0] + widths[1])
  const lefts = [0, widths[0] + gap]
  const unit = (lefts[1] + widths[1]) / 1000
  const at = ([x, y], k) => [lefts[k] + (x + 0.5) * scales[k], (y + 0.5) * scales[k]]
  const lines = reply.pairs.map(({ mark, first, second }) => {
    const [[x1, y1], [x2, y2]] = [at(first, 0), at(second, 1)]
    return svg('line', { class: `s${mark % COLORS}`, x1, y1, x2, y2 })
  })
  const points = [reply.first, reply.second].flatMap((places, k) => places.flatMap((place, index) => {
    const [x, y] = at(place, k)
    return [svg('circle', { cx: x, cy: y, r: 7 * unit }), svg('text', { x, y: y < 26 * unit ? y + 24 * unit : y - 10 * unit, 'font-size': 17 * unit }, String(index + 1))]
  }))
  const said = reply.pairs.map(({ mark, partner }) => `${mark} is ${partner}`).join(', ')
  return el('figure', {}, svg('svg', {
    class: 'matched', viewBox: `0 0 ${lefts[1] + widths[1]} ${height}`, role: 'img',
    'aria-label': `Points of image 0 and of image 1: ${said || 'no pair'}`,
  }, images.map(({ url }, k) => svg('image', { href: url, x: lefts[k], y: 0, width: widths[k], height, preserveAspectRatio: 'none' })),
  lines, points))
}
