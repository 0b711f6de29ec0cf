/** The job files of docs/guide/distributed.md: their syntax, and that `init` understands what they set. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { readLaunchEnvironment } from '../../src/dist/launch-environment.js';

const guide = readFileSync(join(import.meta.dirname, '../../docs/guide/distributed.md'), 'utf8');
const blocksOf = (language: string): string[] =>
  [...guide.matchAll(new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, 'gs'))].map(([, text]) => text);

const hasYaml = spawnSync('python3', ['-c', 'import yaml']).status === 0;
if (!hasYaml) console.log('PyYAML is not installed: the Kubernetes files are not read');

test('the scripts of the guide are scripts', () => {
  const scripts = blocksOf('sh');
  expect(scripts.length).toBeGreaterThanOrEqual(3);
  for (const script of scripts) {
    const { status, stderr } = spawnSync('bash', ['-n'], { input: script, encoding: 'utf8' });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  }
});

test('the Slurm file sets what init needs beside the variables of srun', () => {
  const script = blocksOf('sh').find((text) => text.includes('#SBATCH'))!;
  const run = `scontrol() { echo node1; echo node2; }\n${script.replace('srun node train.js', 'env')}`;
  const { stdout } = spawnSync('bash', ['-c', run], { encoding: 'utf8', env: { PATH: process.env.PATH } });
  const set = Object.fromEntries(stdout.split('\n').map((line) => line.split('=', 2)));
  const srun = { SLURM_PROCID: '5', SLURM_NTASKS: '8', SLURM_LOCALID: '1', SLURM_JOB_ID: '77' };
  expect(readLaunchEnvironment({ ...set, ...srun })).toMatchObject({
    rank: 5,
    size: 8,
    host: 'node1',
    port: 29_500,
    runId: '77',
  });
});

describe.runIf(hasYaml)('the Kubernetes file', () => {
  test('is a headless service and an indexed job whose pods find each other', () => {
    const program = 'import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))';
    const { stdout } = spawnSync('python3', ['-c', program], {
      input: blocksOf('yaml')[0],
      encoding: 'utf8',
    });
    const [service, job] = JSON.parse(stdout);
    expect(service).toMatchObject({ apiVersion: 'v1', kind: 'Service', spec: { clusterIP: 'None' } });
    expect(job).toMatchObject({ apiVersion: 'batch/v1', kind: 'Job' });
    const { name } = job.metadata;
    expect(service.spec.selector).toEqual({ 'job-name': name });
    const { completions, parallelism, completionMode, template } = job.spec;
    expect(completionMode).toBe('Indexed');
    expect(parallelism).toBe(completions); // all ranks at once
    expect(template.spec.subdomain).toBe(service.metadata.name);
    expect(template.spec.restartPolicy).toBe('Never');
    const [{ env }] = template.spec.containers;
    const variables = Object.fromEntries(
      env.map((one: { name: string; value: string }) => [one.name, one.value]),
    );
    expect(readLaunchEnvironment({ ...variables, JOB_COMPLETION_INDEX: '3' })).toMatchObject({
      rank: 3,
      size: completions,
      host: `${name}-0.${service.metadata.name}`,
      port: 29_500,
    });
  });
});
