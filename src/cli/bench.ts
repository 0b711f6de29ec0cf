import { Device, type DeviceLike } from '../tensor/index.js';
import { benchCallOverhead } from './bench/call-overhead.js';
import type { Bench, BenchLine } from './bench/measure.js';
import { benchVarlenAttention } from './bench/varlen-attention.js';
import { EXIT, printJson, readFlags, say, table, type Usage, UsageError } from './command.js';

/** The benches that ship with the package, by the name they are asked for. */
const BENCHES: Readonly<Record<string, Bench>> = {
  'varlen-attention': benchVarlenAttention,
  'call-overhead': benchCallOverhead,
};

export const usage: Usage = {
  synopsis: 'varlen bench [name...] [--device cpu|cuda|cuda:N] [--quick] [--json]',
  summary: `Measures on this machine, each result checked once before it is timed. Names: ${Object.keys(BENCHES).join(', ')}.`,
  flags: [
    ['--device cpu|cuda|cuda:N', 'default: CUDA when it can be used'],
    ['--quick', 'a tenth of the time'],
    ['--json', 'one JSON document on stdout: a list of lines'],
  ],
};

/** The lines of benches as a table. */
export function describeLines(lines: readonly BenchLine[]): string {
  const head = [
    'op',
    'impl',
    'dtype',
    'shape',
    'median us',
    'p10',
    'p90',
    'runs',
    'GB/s',
    'TFLOP/s',
    'times',
    'of',
  ];
  const rows = lines.map((line) => [
    line.op,
    line.impl,
    line.dtype,
    line.shape,
    ...[line.medianUs, line.p10Us, line.p90Us, line.runs, line.gbps, line.tflops].map((x) => String(x ?? '')),
    String(line.ratio),
    line.comparedWith,
  ]);
  return table([head, ...rows]);
}

/** `varlen bench`: runs the benches named, or all. */
export async function main(argv: readonly string[], signal?: AbortSignal): Promise<number> {
  const flags = {
    device: { type: 'string' },
    quick: { type: 'boolean' },
    json: { type: 'boolean' },
  } as const;
  const { values, positionals } = readFlags(usage, argv, flags, true);
  const unknown = positionals.find((name) => !Object.hasOwn(BENCHES, name));
  if (unknown !== undefined) throw new UsageError(`no bench '${unknown}'`, usage);
  const device = Device.resolve((values.device ?? 'auto') as DeviceLike);
  const lines: BenchLine[] = [];
  for (const name of positionals.length > 0 ? positionals : Object.keys(BENCHES)) {
    if (process.stderr.isTTY && !values.json) say(`${name} on ${device} ...`);
    for await (const line of BENCHES[name]({ device, quick: values.quick === true, signal }))
      lines.push(line);
  }
  if (values.json) printJson(lines);
  else say(describeLines(lines));
  return EXIT.ok;
}
