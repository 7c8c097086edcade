// What numbers mean, in sentences.
import { described } from './poses.js'

export const FORMS = {
  text: 'A short text.',
  letter: 'One of your options, by its letter.',
  number: 'One number, such as a distance in metres.',
  box: 'A box around a thing, drawn on the photo.',
  camera_motion: 'Where the camera of one photo stands in another photo, and how far away.',
  view_change: 'How the camera moved: right, up, forward, and its turns.',
}

export const length = (metres) => (metres < 0.995 ? `${Math.round(metres * 100)} cm` : `${metres.toFixed(1)} m`)
const angle = (degrees) => `${Math.abs(degrees) < 10 ? Math.abs(degrees).toFixed(1) : Math.abs(degrees).toFixed(0)}°`

function listed(parts) {
  return parts.length < 2 ? parts.join('') : `${parts.slice(0, -1).join(', ')} and ${parts.at(-1)}`
}

/** Where a camera is, seen from another: "1.2 m ahead and 30 cm to the right, looking 20° to the left". */
export function whereabouts(matrix) {
  const { right, up, forward, metres, yaw, pitch } = described(matrix)
  const moves = [
    [forward, 'ahead', 'behind'], [right, 'to the right', 'to the left'], [up, 'higher', 'lower'],
  ].filter(([value]) => Math.abs(value) >= 0.05)
    .map(([value, plus, minus]) => `${length(Math.abs(value))} ${value > 0 ? plus : minus}`)
  const turns = [[yaw, 'to the right', 'to the left'], [pitch, 'up', 'down']].filter(([value]) => Math.abs(value) >= 1)
    .map(([value, plus, minus]) => `${Math.round(Math.abs(value))}° ${value > 0 ? plus : minus}`)
  const stands = metres < 0.05 || !moves.length ? 'in the same place' : listed(moves)
  return `${stands}, looking ${turns.length ? listed(turns) : 'the same way'}`
}

const LEVELS = [
  [0.1, 5, 'They agree', 'the model holds one picture of the place. That speaks for the poses.'],
  [0.3, 15, 'They nearly agree', 'the cameras fit together, give or take a step.'],
  [1, 40, 'They disagree', 'take the poses as rough, and the answer with care.'],
  [Infinity, Infinity, 'They contradict each other', 'treat the poses, and the answer, as a guess.'],
]

/** The consistency figure as {level: 0 (agrees) to 3, title, text}; null when there is none. */
export function consistency(figure) {
  if (!figure?.triples?.length) return null
  const { metres, degrees, triples } = figure
  const level = LEVELS.findIndex(([m, d]) => metres <= m && degrees <= d)
  const [i, j, k] = triples.reduce((worst, triple) => (triple.metres > worst.metres ? triple : worst)).views
  const which = triples.length === 1 ? 'The three steps disagree' : 'At worst, three steps disagree'
  return {
    level,
    title: LEVELS[level][2],
    text: `${which} by ${metres.toFixed(2)} m and ${degrees.toFixed(1)} degrees: going from image ${i} to ${j} and on to ` +
      `${k} ends ${length(metres)} from where going from ${i} to ${k} ends. ${LEVELS[level][2]}: ${LEVELS[level][3]}`,
  }
}

/** The answer as one line to be read large, and a line below it. */
export function answerWords(reply, form, options) {
  const { answer, value } = reply
  if (answer === null) return { large: 'No answer', below: 'The model did not write one in the form that can be read.' }
  if (form === 'letter') {
    const option = options['ABCDEFGHIJKLMNOP'.indexOf(answer.trim()[0])]
    return { large: answer, below: option ?? '' }
  }
  if (form === 'view_change' && value) return { large: viewChange(value), below: '' }
  if (form === 'camera_motion' && value) {
    const { x, y, depth } = value
    return { large: `${length(depth)} ahead`, below: `${share(x)} from the left and ${share(y)} from the top of the photo` }
  }
  if (form === 'box' && value) {
    return { large: value.join(', '), below: 'left, top, right and bottom edge in thousandths of the photo' }
  }
  return { large: answer, below: '' }
}

const share = (thousandths) => `${Math.round(thousandths / 10)} %`

const OPPOSITE = { right: 'left', up: 'down', forward: 'back' }

function viewChange(value) {
  const parts = Object.entries(value).filter(([, amount]) => Math.abs(amount) > 0.005).map(([name, amount]) => {
    const [verb, plus] = name.split('_')
    const way = amount > 0 ? plus : OPPOSITE[plus]
    return verb === 'rotate' ? `turn ${way} ${angle(amount)}` : `${length(Math.abs(amount))} ${way}`
  })
  return parts.length ? listed(parts) : 'no motion'
}

/** Problems of a reply in words; a name that is not here is shown as it is. */
export const PROBLEMS = {
  no_action_block: 'it did not say how the camera moves',
  no_answer_block: 'it wrote no answer',
  unclosed_answer: 'its answer breaks off',
  unclosed_action: 'its description of the motion breaks off',
  bad_json: 'its description of the motion cannot be read',
  missing_pair: 'a pair of photos is missing in the motion',
}
export const problemWords = (name) => PROBLEMS[name] ?? name.replaceAll('_', ' ')
