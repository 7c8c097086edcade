// A reply as something to look at.
import { el, svg } from './dom.js'
import { asCurl, asPython, copyable } from './copies.js'
import { detailsBox } from './details.js'
import { cameraFigure, dot } from './figure.js'
import { answerWords, consistency, problemWords } from './words.js'

/**
 * Everything about a reply, to be put on the page. asked: {body, images: [{url, name}], example or null} as it was
 * when the question was sent.
 */
export async function resultOf(reply, asked) {
  const { body, images, example } = asked
  const figure = await cameraFigure({
    poses: reply.poses, images, truth: example?.truth.poses, fov: example?.fov_deg,
  })
  return [
    answerBox(reply, asked),
    motionBox(reply, images.length, example),
    figure,
    consistencyBox(reply, images.length),
    detailsBox(reply,
      copyable('This request as curl', asCurl(location.origin, names(images), body)),
      copyable('This request as Python', asPython(location.origin, names(images), body))),
  ].filter(Boolean)
}

const names = (images) => images.map(({ name }) => name)

function answerBox(reply, asked) {
  const { body, example } = asked
  const { large, below } = answerWords(reply, body.answer_form, body.options)
  const drawn = marked(reply, asked)
  return el('section', { class: 'box answer', 'aria-labelledby': 'answer-heading' },
    el('h2', { id: 'answer-heading', class: 'question' }, body.question),
    el('p', { class: large.length > 40 ? 'large long' : 'large', id: 'answer' }, large),
    below ? el('p', { class: 'below' }, below) : null,
    example ? el('p', { class: 'true' }, el('b', {}, 'What is true: '), truthWords(example)) : null,
    reply.problems.length ? el('p', { class: 'faults' },
      `Read this reply with care: ${reply.problems.map(problemWords).join('; ')}.`) : null,
    drawn,
    votes(reply, body))
}

function truthWords({ truth, options }) {
  const option = options['ABCDEFGHIJKLMNOP'.indexOf(truth.answer)]
  return option ? `${truth.answer}, ${option}` : truth.answer
}

/** A box or a place, drawn on the photo that the question means; another can be chosen. */
function marked({ value }, { body, images, example }) {
  const form = body.answer_form
  if (!value || !(form in SHAPES)) return null
  const shapes = [SHAPES[form](value)]
  if (form === 'box' && example) shapes.push(boxShape(JSON.parse(example.truth.answer), 'truth'))
  const named = [...body.question.matchAll(/image (\d+)/gi)].map(([, index]) => Number(index)).filter((k) => k < images.length)
  const first = form === 'camera_motion' ? 0 : (named.at(0) ?? images.length - 1)
  const stage = el('div', { class: 'marked' })
  const show = (index) => stage.replaceChildren(
    el('img', { src: images[index].url, alt: `image ${index} with the answer drawn on it` }),
    svg('svg', { viewBox: '0 0 1000 1000', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, shapes))
  show(first)
  const choice = images.length < 2 ? null : el('div', { class: 'chips figure-choice', role: 'radiogroup', 'aria-label': 'Draw it on' },
    images.map((_, index) => el('label', {},
      el('input', { type: 'radio', name: 'marked', checked: index === first, onchange: () => show(index) }),
      el('span', {}, `on image ${index}`))))
  return el('figure', {}, stage, choice)
}

function boxShape([x1, y1, x2, y2], kind = 'said') {
  return svg('rect', { class: kind, x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) })
}

const SHAPES = {
  box: (value) => boxShape(value),
  camera_motion: ({ x, y }) => svg('ellipse', { class: 'said', cx: x, cy: y, rx: 22, ry: 22 }),
}

function votes({ votes: cast }, body) {
  if (!cast) return null
  const counts = Object.entries(cast.counts).sort(([, a], [, b]) => b - a)
  const whole = counts.reduce((sum, [, weight]) => sum + weight, 0)
  const spread = cast.spread === null || cast.spread === undefined ? '' : ` Their numbers spread by ${cast.spread.toPrecision(2)}.`
  return el('div', { class: 'votes' },
    el('p', {}, `${Math.round(100 * cast.agreement)} % of the votes of ${cast.samples} samples agree.${spread}`),
    el('ul', {}, counts.map(([answer, weight]) => el('li', {},
      el('span', {}, answer), el('meter', { min: 0, max: whole, value: weight, 'aria-label': `votes for ${answer}` }),
      el('span', { class: 'soft' }, weight.toFixed(1))))))
}

function motionBox(reply, count, example) {
  if (count < 2) return el('section', { class: 'box' }, el('h3', {}, 'How the camera moved'),
    el('p', { class: 'soft' }, 'One photo is answered directly: there is no motion to tell.'))
  const truth = new Map((example?.truth.actions ?? []).map((plan) => [`${plan.from}-${plan.to}`, plan.words]))
  const rows = reply.actions.map(({ from, to, words }) => el('li', {},
    el('span', { class: 'pair' }, dot(from), '→', dot(to), el('span', { class: 'hidden' }, `From image ${from} to image ${to}: `)),
    el('span', {}, words, truth.has(`${from}-${to}`) ? el('small', {}, `true: ${truth.get(`${from}-${to}`)}`) : null)))
  return el('section', { class: 'box', 'aria-labelledby': 'motion-heading' },
    el('h3', { id: 'motion-heading' }, 'How the camera moved, says the model'),
    rows.length ? el('ul', { class: 'motion' }, rows)
      : el('p', { class: 'soft' }, 'The model did not say it in a form that can be read, so there are no cameras to draw.'))
}

function consistencyBox({ consistency: figure, actions }, count) {
  if (count < 2) return null
  const said = consistency(figure)
  const heading = el('h3', { id: 'belief' }, 'Does it believe itself?')
  if (!said) {
    const why = count < 3 ? 'With two photos there is one motion and nothing to compare it with. Add a third photo.'
      : actions.length ? 'The motions between the photos do not close a triangle, so they cannot be compared.'
        : 'There is no motion to compare.'
    return el('section', { class: 'box' }, heading, el('p', { class: 'soft' }, why))
  }
  const scale = ['agree', 'nearly', 'disagree', 'contradict']
  return el('section', { class: 'box', 'aria-labelledby': 'belief' }, heading,
    el('div', { class: 'scale', role: 'img', 'aria-label': `${said.title}: step ${said.level + 1} of 4 from agreeing to contradicting` },
      scale.map((name, level) => el('span', { class: level === said.level ? `on l${level}` : '' }, name))),
    el('p', { id: 'consistency' }, said.text))
}
