import { deviceInfo } from '../tensor/index.js';
import { EXIT, printJson, readFlags, say, table, type Usage } from './command.js';

export const usage: Usage = {
  synopsis: 'varlen info [--json]',
  summary: 'What the package sees of this machine, as deviceInfo() returns it.',
  flags: [['--json', 'one JSON document on stdout']],
};

/** `varlen info`: prints {@link deviceInfo}. */
export async function main(argv: readonly string[]): Promise<number> {
  const { values } = readFlags(usage, argv, { json: { type: 'boolean' } });
  const info = deviceInfo();
  if (values.json) {
    printJson(info);
    return EXIT.ok;
  }
  const { cpu, cuda } = info;
  const rows = [
    ['binary', info.version],
    ['cpu', cpu.model],
    ['cores', String(cpu.cores)],
    ['isa', cpu.isaNote === undefined ? cpu.isa : `${cpu.isa} (${cpu.isaNote})`],
    ['threads', String(info.threads)],
    [
      'cuda',
      cuda.available ? `runtime ${cuda.runtimeVersion}, driver ${cuda.driverVersion}` : `off: ${cuda.reason}`,
    ],
  ];
  if (cuda.available) {
    for (const [index, device] of cuda.devices.entries()) {
      const gib = (device.memoryBytes / 2 ** 30).toFixed(0);
      rows.push([`cuda:${index}`, `${device.name}, compute ${device.computeCapability}, ${gib} GiB`]);
    }
  }
  say(table(rows));
  return EXIT.ok;
}
