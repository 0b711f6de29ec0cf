/** What `varlen train` shows while it runs: a bar on a terminal, now and then a line elsewhere. */
import type { TrainRecord } from '../trainer/records.js';

const BAR_WIDTH = 24;
/** Steps between two lines where there is no terminal. */
const LINE_EVERY = 10;

/** `1:05` or `1:02:03`. */
export function clock(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value: number) => String(value).padStart(2, '0');
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

/** The figures of a step, in words. */
function figures(record: TrainRecord): string {
  const { machine } = record;
  const rate = `${Math.round(machine.tokensPerSecond).toLocaleString('en-US')} tok/s`;
  switch (record.phase) {
    case 'sft':
      return `loss ${record.loss.toFixed(3)}  ${rate}  padding ${percent(record.paddingRatio)}`;
    case 'rl':
      return [
        `reward ${record.reward.toFixed(3)}`,
        `loss ${record.loss.toFixed(4)}`,
        rate,
        `padding ${percent(record.paddingRatio)}`,
        `bubble ${percent(record.machine.bubbleRatio)}`,
      ].join('  ');
    case 'eval': {
      const { sampled, greedy } = record;
      const range = `${percent(sampled.low)} to ${percent(sampled.high)}`;
      return `sampled ${percent(sampled.value)} (${range})  greedy ${percent(greedy.value)}  ${rate}`;
    }
  }
}

/** Where the lines go; `process.stderr` is one. */
export interface ProgressOutput {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

/** Shows the steps of one run. */
export class Progress {
  readonly #output: ProgressOutput;
  readonly #total: Readonly<Record<'sft' | 'rl', number>>;
  #open = false;

  constructor(output: ProgressOutput, total: Readonly<Record<'sft' | 'rl', number>>) {
    this.#output = output;
    this.#total = total;
  }

  /** Shows a record. */
  show(record: TrainRecord): void {
    if (record.phase === 'eval') {
      this.#line(`eval ${record.after.padEnd(5)}  ${figures(record)}`);
      return;
    }
    const total = this.#total[record.phase];
    const { step, machine } = record;
    const left = step === 0 ? 0 : ((total - step) * machine.seconds) / step;
    const head = `${record.phase.padEnd(4)} ${String(step).padStart(String(total).length)}/${total}`;
    const text = `${head}  ${figures(record)}  ETA ${clock(left)}`;
    const last = step >= total;
    if (!this.#output.isTTY) {
      if (last || step % LINE_EVERY === 0 || step === 1) this.#output.write(`${text}\n`);
      return;
    }
    const done = Math.round((BAR_WIDTH * step) / total);
    const bar = `[${'#'.repeat(done)}${'-'.repeat(BAR_WIDTH - done)}] ${text}`;
    // A line longer than the terminal would wrap, and \r would not take it back.
    this.#output.write(`\r\x1b[2K${bar.slice(0, (this.#output.columns ?? 80) - 1)}`);
    this.#open = true;
    if (last) this.end();
  }

  /** Leaves the bar as it stands. */
  end(): void {
    if (this.#open) this.#output.write('\n');
    this.#open = false;
  }

  #line(text: string): void {
    this.end();
    this.#output.write(`${text}\n`);
  }
}
