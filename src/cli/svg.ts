/** Plots as self-contained SVG, for the pages that commands write. */

/** Colours that stay apart for readers with colour-blindness (Okabe and Ito, 2008). */
const palette = ['#999999', '#56b4e9', '#e69f00', '#cc79a7', '#d55e00', '#009e73', '#0072b2'] as const;

const axisStyle = 'font: 12px system-ui, sans-serif; fill: #444';
const margin = { left: 66, right: 16, top: 12, bottom: 48 };

/** A plot with one group of bars per label. */
export interface BarPlot {
  readonly labels: readonly string[];
  readonly series: readonly {
    readonly name: string;
    readonly values: readonly number[];
    /** Ends of a whisker per bar, such as a confidence interval; with them each bar bears its value. */
    readonly intervals?: readonly (readonly [low: number, high: number] | undefined)[];
    /** Place in the palette. */
    readonly color: number;
  }[];
  /** A short line across the group, such as a published figure; undefined: none. */
  readonly marks?: readonly (number | undefined)[];
  readonly yLabel: string;
  /** Width of the drawing in pixels; letters keep their size. Default 960. */
  readonly width?: number;
}

/** Height of a drawing for its width: a narrow one stands beside another. */
function sizeOf(width = 960): { width: number; height: number } {
  return { width, height: width < 600 ? 250 : 340 };
}

/** Grouped bars. */
export function barPlot({ labels, series, marks = [], yLabel, width }: BarPlot): string {
  const size = sizeOf(width);
  const ends = series.flatMap((s) => s.intervals?.map((interval) => interval?.[1] ?? 0) ?? []);
  const values = series.flatMap((s) => s.values);
  const top = niceCeiling(Math.max(1e-9, ...values, ...ends, ...marks.map((m) => m ?? 0)));
  const y = scale(0, top, size.height - margin.bottom, margin.top);
  const slot = (size.width - margin.left - margin.right) / labels.length;
  const bar = (slot * 0.82) / series.length;
  const parts = [yAxis(size, top, y, yLabel)];
  labels.forEach((label, group) => {
    const left = margin.left + group * slot + slot * 0.09;
    series.forEach(({ name, values, intervals, color: shade }, i) => {
      const x = left + i * bar;
      const interval = intervals?.[group];
      const range = interval === undefined ? '' : ` (${number(interval[0])} to ${number(interval[1])})`;
      const title = `${label}: ${name} ${number(values[group])}${range}`;
      parts.push(
        `<rect x="${fixed(x)}" y="${fixed(y(values[group]))}" width="${fixed(bar * 0.9)}" height="${fixed(y(0) - y(values[group]))}" fill="${color(shade)}"><title>${escapeHtml(title)}</title></rect>`,
      );
      if (interval !== undefined) parts.push(whisker(x + bar * 0.45, interval, y, number(values[group])));
    });
    const mark = marks[group];
    if (mark !== undefined) {
      parts.push(
        `<line x1="${fixed(left)}" x2="${fixed(left + slot * 0.82)}" y1="${fixed(y(mark))}" y2="${fixed(y(mark))}" stroke="#000" stroke-width="2" stroke-dasharray="6 3"><title>${escapeHtml(`${label}: published ${number(mark)}`)}</title></line>`,
      );
    }
    parts.push(text(left + slot * 0.41, size.height - margin.bottom + 18, label, 'middle'));
  });
  return svg(size, parts);
}

/** A line from one value to another with short caps, and a word above it. */
function whisker(
  x: number,
  [low, high]: readonly [number, number],
  y: (value: number) => number,
  word: string,
): string {
  const cap = (value: number) => `M${fixed(x - 4)},${fixed(y(value))}h8`;
  const path = `${cap(low)}${cap(high)}M${fixed(x)},${fixed(y(low))}V${fixed(y(high))}`;
  return `<path d="${path}" stroke="#444" stroke-width="1.2" fill="none"/>${text(x, y(high) - 5, word, 'middle')}`;
}

/** A plot of lines over a common axis. */
export interface LinePlot {
  readonly series: readonly {
    readonly name: string;
    readonly points: readonly (readonly [x: number, y: number])[];
  }[];
  /** A band that a figure should cross, such as a published range. */
  readonly band?: readonly [low: number, high: number];
  readonly xLabel: string;
  readonly yLabel: string;
  /** The axis reaches at least so far. Default: as far as the points. */
  readonly top?: number;
  /** As {@link BarPlot}'s. */
  readonly width?: number;
}

/** A line of more points than that is drawn without dots, which would hide it. */
const MAX_DOTS = 40;

/** Lines with points. */
export function linePlot({ series, band, xLabel, yLabel, top: least = 0, width }: LinePlot): string {
  const size = sizeOf(width);
  const points = series.flatMap((s) => s.points);
  const right = Math.max(1e-9, ...points.map(([x]) => x));
  const top = niceCeiling(Math.max(1e-9, ...points.map(([, y]) => y), ...(band ?? []), least));
  const x = scale(0, right, margin.left, size.width - margin.right - 8);
  const y = scale(0, top, size.height - margin.bottom, margin.top);
  const parts = [yAxis(size, top, y, yLabel)];
  if (band !== undefined) {
    const [low, high] = band;
    parts.push(
      `<rect x="${margin.left}" width="${size.width - margin.left - margin.right}" y="${fixed(y(high))}" height="${fixed(Math.max(1, y(low) - y(high)))}" fill="#000" opacity="0.08"/>`,
    );
  }
  series.forEach(({ name, points: line }, i) => {
    const path = line.map(([px, py]) => `${fixed(x(px))},${fixed(y(py))}`).join(' ');
    parts.push(
      `<polyline points="${path}" fill="none" stroke="${color(i + 1)}" stroke-width="${size.width < 600 ? 1.6 : 2.5}" stroke-linejoin="round"/>`,
    );
    for (const [px, py] of line.length > MAX_DOTS ? [] : line) {
      const title = `${name}: ${number(py)} at ${number(px)}`;
      parts.push(
        `<circle cx="${fixed(x(px))}" cy="${fixed(y(py))}" r="4" fill="${color(i + 1)}"><title>${escapeHtml(title)}</title></circle>`,
      );
    }
  });
  const step = niceStep(right / 5);
  for (let value = 0; value <= right * (1 + 1e-9); value += step) {
    parts.push(text(x(value), size.height - margin.bottom + 18, number(value), 'middle'));
  }
  parts.push(text((margin.left + size.width) / 2, size.height - 8, xLabel, 'middle'));
  return svg(size, parts);
}

/** A histogram of counts over equal cells of `[low, high]`. */
export interface Histogram {
  readonly counts: readonly number[];
  readonly low: number;
  readonly high: number;
  readonly xLabel: string;
  readonly yLabel: string;
}

/** Bars side by side. */
export function histogramPlot({ counts, low, high, xLabel, yLabel }: Histogram): string {
  const size = { width: 960, height: 260 };
  const top = niceCeiling(Math.max(1, ...counts));
  const y = scale(0, top, size.height - margin.bottom, margin.top);
  const x = scale(low, high, margin.left, size.width - margin.right - 8);
  const cell = (high - low) / counts.length;
  const parts = [yAxis(size, top, y, yLabel)];
  counts.forEach((count, i) => {
    const from = low + i * cell;
    const title = `${number(from)} to ${number(from + cell)}: ${count}`;
    parts.push(
      `<rect x="${fixed(x(from))}" y="${fixed(y(count))}" width="${fixed(Math.max(1, x(from + cell) - x(from) - 1))}" height="${fixed(y(0) - y(count))}" fill="${palette[6]}"><title>${escapeHtml(title)}</title></rect>`,
    );
  });
  for (let tick = 0; tick <= 5; tick++) {
    const value = low + ((high - low) * tick) / 5;
    parts.push(text(x(value), size.height - margin.bottom + 18, number(value), 'middle'));
  }
  parts.push(text((margin.left + size.width) / 2, size.height - 8, xLabel, 'middle'));
  return svg(size, parts);
}

/** Names beside their colours: pairs of name and place in the palette. */
export function legend(entries: readonly { readonly name: string; readonly color: number }[]): string {
  const items = entries.map(
    ({ name, color: shade }) => `<span><i style="background:${color(shade)}"></i>${escapeHtml(name)}</span>`,
  );
  return `<p class="legend">${items.join('')}</p>`;
}

/** An HTML table; the first row is its head. */
export function htmlTable(rows: readonly (readonly string[])[]): string {
  const [head, ...body] = rows;
  const cells = (row: readonly string[], tag: string) =>
    row.map((c) => `<${tag}>${escapeHtml(c)}</${tag}>`).join('');
  const lines = body.map((row) => `<tr>${cells(row, 'td')}</tr>`).join('');
  return `<table><thead><tr>${cells(head, 'th')}</tr></thead><tbody>${lines}</tbody></table>`;
}

/** A whole page that needs no network: `body` is HTML. */
export function page(title: string, body: string): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escapeHtml(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 32px auto; padding: 0 20px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; } p { margin: 6px 0; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 10px 0; width: 100%; font-size: 14px; }
th, td { padding: 5px 8px; text-align: right; border-bottom: 1px solid #e4e4e4; } th { font-weight: 600; color: #555; }
th:first-child, td:first-child { text-align: left; }
.legend span { display: inline-block; margin-right: 16px; white-space: nowrap; }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 2px; vertical-align: -1px; }
.note { color: #666; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 8px 28px; }
.charts h2 { font-size: 16px; margin: 20px 0 4px; } .charts p { font-size: 13px; }
</style></head><body>
${body}
</body></html>
`;
}

/** Text that is safe inside HTML and its attributes. */
export function escapeHtml(value: string): string {
  return value.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c] ?? '&quot;');
}

function svg({ width, height }: { width: number; height: number }, parts: readonly string[]): string {
  return `<svg viewBox="0 0 ${width} ${height}" role="img" xmlns="http://www.w3.org/2000/svg">${parts.join('')}</svg>`;
}

function yAxis(
  size: { width: number; height: number },
  top: number,
  y: (value: number) => number,
  label: string,
): string {
  const parts: string[] = [];
  for (let tick = 0; tick <= 4; tick++) {
    const value = (top * tick) / 4;
    parts.push(
      `<line x1="${margin.left}" x2="${size.width - margin.right}" y1="${fixed(y(value))}" y2="${fixed(y(value))}" stroke="${tick === 0 ? '#888' : '#e4e4e4'}"/>`,
      text(margin.left - 8, y(value) + 4, number(value), 'end'),
    );
  }
  const middle = (margin.top + size.height - margin.bottom) / 2;
  parts.push(
    `<text x="14" y="${fixed(middle)}" text-anchor="middle" transform="rotate(-90 14 ${fixed(middle)})" style="${axisStyle}">${escapeHtml(label)}</text>`,
  );
  return parts.join('');
}

function text(x: number, y: number, words: string, anchor: string): string {
  return `<text x="${fixed(x)}" y="${fixed(y)}" text-anchor="${anchor}" style="${axisStyle}">${escapeHtml(words)}</text>`;
}

function scale(low: number, high: number, from: number, to: number): (value: number) => number {
  const span = high === low ? 1 : high - low;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** The next 1, 2, 4, 6 or 8 times a power of ten: its quarters are short numbers. */
function niceCeiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 4, 6, 8, 10].find((factor) => factor * power >= value * (1 - 1e-9)) ?? 10;
  return step * power;
}

/** The next 1, 2 or 5 times a power of ten: ticks at its multiples are round. */
function niceStep(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 5].find((factor) => factor * power >= value * (1 - 1e-9)) ?? 10);
}

function color(i: number): string {
  return palette[i % palette.length];
}

function fixed(value: number): string {
  return value.toFixed(1);
}

function number(value: number): string {
  const short = Number(value.toPrecision(3));
  return short !== 0 && Math.abs(short) < 1e-3 ? short.toExponential() : String(short);
}
