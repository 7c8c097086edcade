// The same request for a terminal and for a program.
import { el, say } from './dom.js'

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`
const python = (value) => JSON.stringify(value).replace(/^null$/, 'None').replace(/^true$/, 'True').replace(/^false$/, 'False')

const DEFAULTS = { samples: 1, temperature: 0, constrained: false }

/** Fields of a request that differ from the service's defaults, images left out. */
function fields({ images, ...body }) {
  return Object.entries(body).filter(([name, value]) => value !== null && value !== DEFAULTS[name] && value.length !== 0)
}

export function asCurl(origin, names, body) {
  const parts = [
    ...names.map((name) => `-F ${quoted(`images=@${name}`)}`),
    ...fields(body).flatMap(([name, value]) => [value].flat().map((item) => `-F ${quoted(`${name}=${item}`)}`)),
  ]
  return [`curl -s ${origin}/reason`, ...parts].join(' \\\n  ')
}

export function asPython(origin, names, body) {
  const { question, ...others } = Object.fromEntries(fields(body))
  const extra = Object.entries(others).map(([name, value]) => `, ${name}=${python(value)}`).join('')
  return [
    'from serve.client import Reasoner', '',
    `reasoner = Reasoner(${python(origin)})`,
    `reply = reasoner.ask(${python(names)}, ${python(question)}${extra})`,
    'print(reply.answer, reply.consistency)',
  ].join('\n')
}

/** A disclosure with a text and a button that copies it. */
export function copyable(title, text) {
  const code = el('pre', { tabindex: '0', role: 'group', 'aria-label': title }, text)
  const button = el('button', { type: 'button', class: 'small' }, 'Copy')
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text)
      button.textContent = 'Copied'
      say(`${title} copied.`)
    } catch {
      // Only a page from localhost or https may write the clipboard.
      getSelection().selectAllChildren(code)
      button.textContent = 'Selected: press Ctrl+C'
      say('The text is selected. Press Ctrl+C to copy it.')
    }
  })
  return el('details', {}, el('summary', {}, title), el('div', { class: 'copy' }, code, button))
}
