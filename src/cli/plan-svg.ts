/** The set of one head as a picture: queries down, keys across. */

const SIZE = 480;

/** Shares of kept pairs in `cells x cells` squares of a causal mask of `tokens` tokens. */
function shares(mask: Uint8Array, tokens: number, cells: number): Float64Array {
  const kept = new Float64Array(cells * cells);
  const all = new Float64Array(cells * cells);
  const cellOf = Int32Array.from({ length: tokens }, (_, x) => Math.floor((x * cells) / tokens));
  for (let i = 0; i < tokens; i++) {
    for (let j = 0; j <= i; j++) {
      const cell = cellOf[i] * cells + cellOf[j];
      all[cell]++;
      kept[cell] += mask[i * tokens + j];
    }
  }
  return kept.map((n, cell) => (all[cell] > 0 ? n / all[cell] : -1));
}

/**
 * An SVG of a causal mask `[tokens, tokens]`: dark squares are computed in full, light ones in part.
 *
 * @param title what stands above the picture, for example a head and its pattern
 */
export function maskSvg(mask: Uint8Array, tokens: number, title: string): string {
  const cells = Math.min(tokens, 120);
  const share = shares(mask, tokens, cells);
  const size = SIZE / cells;
  const parts: string[] = [];
  for (let row = 0; row < cells; row++) {
    for (let column = 0; column <= row; ) {
      const level = Math.ceil(share[row * cells + column] * 8);
      let end = column + 1;
      while (end <= row && Math.ceil(share[row * cells + end] * 8) === level) end++;
      if (level > 0) {
        parts.push(
          `<rect x="${(column * size).toFixed(1)}" y="${(row * size).toFixed(1)}" width="${((end - column) * size).toFixed(1)}" height="${size.toFixed(1)}" fill-opacity="${(level / 8).toFixed(3)}"/>`,
        );
      }
      column = end;
    }
  }
  const escaped = title.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="-24 -28 ${SIZE + 32} ${SIZE + 52}" role="img">`,
    `<title>${escaped}</title>`,
    `<style>text { font: 13px system-ui, sans-serif; fill: #444 }</style>`,
    `<text x="0" y="-10">${escaped}</text>`,
    `<path d="M0 0V${SIZE}H${SIZE}Z" fill="#f2f2f2"/>`,
    `<g fill="#0072b2">${parts.join('')}</g>`,
    `<text x="${SIZE}" y="${SIZE + 18}" text-anchor="end">keys</text>`,
    `<text transform="rotate(-90)" x="-60" y="-8">queries</text>`,
    '</svg>\n',
  ].join('\n');
}
