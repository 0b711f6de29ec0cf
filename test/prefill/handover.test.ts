import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { findCloudTokens, type HandoverSetup, simulateHandover } from '../../src/prefill/index.js';
import { thrown } from '../support/thrown.js';

const setup: HandoverSetup = {
  promptTokens: 8192,
  cloudFirstToken: 0.6,
  cloudPerToken: 0.02,
  devicePrefill: { linear: 4e-4, quadratic: 1e-8 },
  devicePerReceived: 5e-4,
  devicePerToken: 0.05,
};

describe('simulateHandover', () => {
  test('the worked example of a prompt of 8192 tokens', () => {
    expect(simulateHandover(setup, 0)).toMatchObject({ maxTpot: 0, cloudBusy: 0 });
    expect(simulateHandover(setup, 0).ttft).toBeCloseTo(3.997889, 6);
    const short = simulateHandover(setup, 32);
    expect(short.ttft).toBe(0.6);
    expect(short.deviceReady).toBeCloseTo(4.013889, 6);
    expect(short.maxTpot).toBeCloseTo(0.106684, 6);
    expect(short.cloudBusy).toBeCloseTo(0.6 + 31 * 0.02, 12);
    expect(simulateHandover(setup, 64).maxTpot).toBeCloseTo(0.053592, 6);
    expect(simulateHandover(setup, 128).maxTpot).toBeCloseTo(0.027046, 6);
    expect(simulateHandover(setup, 256).maxTpot).toBeCloseTo(0.02, 12);
    expect(findCloudTokens(setup, { maxTpot: 0.05 })).toBe(69);
  });

  test('a shorter prompt for the device needs fewer tokens of the cloud', () => {
    expect(findCloudTokens({ ...setup, refinedTokens: 2048 }, { maxTpot: 0.05 })!).toBeLessThan(69);
  });

  const times = fc.double({ min: 0, max: 1, noNaN: true });
  const setups = fc.record({
    promptTokens: fc.integer({ min: 0, max: 10_000 }),
    cloudFirstToken: times,
    cloudPerToken: times,
    devicePrefill: fc.record({
      linear: fc.double({ min: 0, max: 1e-3, noNaN: true }),
      quadratic: fc.constant(1e-8),
    }),
    devicePerReceived: times,
    devicePerToken: times,
  });

  test('no token is shown before it is there, and none before the one ahead of it', () => {
    fc.assert(
      fc.property(setups, fc.integer({ min: 1, max: 200 }), (one, tokens) => {
        const { shown, deviceReady, maxTpot } = simulateHandover(one, tokens);
        expect(shown.length).toBe(tokens + 1);
        for (let i = 0; i < tokens; i++) {
          expect(shown[i]).toBeGreaterThanOrEqual(one.cloudFirstToken + i * one.cloudPerToken - 1e-9);
          expect(shown[i + 1]).toBeGreaterThanOrEqual(shown[i]);
          expect(shown[i + 1] - shown[i]).toBeLessThanOrEqual(maxTpot);
        }
        expect(shown[tokens]).toBeGreaterThanOrEqual(deviceReady);
        // Even spacing: no gap is longer than what the cloud's rate or the device asks for.
        const even = (deviceReady - one.cloudFirstToken) / tokens;
        expect(maxTpot).toBeLessThanOrEqual(Math.max(one.cloudPerToken, even) + 1e-9);
      }),
    );
  });

  test('the smallest number keeps the bound and one less does not', () => {
    fc.assert(
      fc.property(setups, fc.double({ min: 0.001, max: 1, noNaN: true }), (one, maxTpot) => {
        const tokens = findCloudTokens(one, { maxTpot, maxTokens: 300 });
        if (tokens === undefined) {
          expect(simulateHandover(one, 300).maxTpot).toBeGreaterThan(maxTpot);
          return;
        }
        expect(simulateHandover(one, tokens).maxTpot).toBeLessThanOrEqual(maxTpot);
        if (tokens > 1) expect(simulateHandover(one, tokens - 1).maxTpot).toBeGreaterThan(maxTpot);
      }),
    );
  });

  test('a cloud that is itself too slow is never enough', () => {
    expect(findCloudTokens({ ...setup, cloudPerToken: 0.2 }, { maxTpot: 0.05 })).toBe(undefined);
  });

  test.each<[string, () => unknown]>([
    ['ERR_VARLEN_RANGE', () => simulateHandover({ ...setup, cloudFirstToken: -1 }, 1)],
    ['ERR_VARLEN_RANGE', () => simulateHandover({ ...setup, devicePerToken: Number.NaN }, 1)],
    [
      'ERR_VARLEN_RANGE',
      () => simulateHandover({ ...setup, devicePrefill: { linear: 1, quadratic: Infinity } }, 1),
    ],
    ['ERR_VARLEN_RANGE', () => simulateHandover({ ...setup, refinedTokens: 8193 }, 1)],
    ['ERR_VARLEN_RANGE', () => simulateHandover(setup, -1)],
    ['ERR_VARLEN_RANGE', () => findCloudTokens(setup, { maxTpot: -1 })],
    ['ERR_VARLEN_RANGE', () => findCloudTokens(setup, { maxTpot: 1, maxTokens: 0 })],
    ['ERR_VARLEN_OPTION', () => simulateHandover({ ...setup, speed: 1 } as never, 1)],
  ])('%s, case %#', (code, run) => {
    expect(thrown(run)).toMatchObject({ code });
  });
});
