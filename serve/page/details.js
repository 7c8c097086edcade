// Below every reply: time, tokens, the model's words, the reply as it came.
import { el } from './dom.js'

/** What a reply took and how it was written; `more`: further disclosures. */
export function detailsBox(reply, ...more) {
  const { tokens, seconds } = reply
  const phases = Object.entries(seconds).filter(([name, value]) => name !== 'total' && value !== null)
    .map(([name, value]) => `${name.replaceAll('_', ' ')} ${value.toFixed(2)}`).join(', ')
  const text = (name, content) => el('pre', { tabindex: '0', role: 'group', 'aria-label': name }, content)
  const fact = (name, text) => [el('dt', {}, name), el('dd', {}, text)]
  return el('section', { class: 'box details' },
    el('dl', { class: 'facts' },
      fact('Time', `${seconds.total.toFixed(2)} s (${phases})`),
      fact('Tokens', `${tokens.prompt} read, ${tokens.images} of them images; ${tokens.reply} written`),
      fact('Model', reply.model_version)),
    el('details', {}, el('summary', {}, 'The model’s own words'), text('Its words', reply.text)),
    el('details', {}, el('summary', {}, 'The reply as JSON'), text('The reply', JSON.stringify(reply, null, 1))),
    more)
}
