import { expect } from 'vitest';

/** Slopes of `loss` by each value, from central differences. The values are not changed. */
export function centralDifferences(
  values: Float64Array,
  loss: (values: Float64Array) => number,
  step = 1e-5,
): Float64Array {
  return values.map((value, i) => {
    const at = (x: number) => loss(values.with(i, x));
    return (at(value + step) - at(value - step)) / (2 * step);
  });
}

/** float32 slopes against differences, whose own error is about 1e-10. */
export function expectSlopes(slopes: ArrayLike<number>, wanted: Float64Array): void {
  expect(slopes).toHaveLength(wanted.length);
  for (let i = 0; i < wanted.length; i++) {
    expect(Math.abs(slopes[i] - wanted[i])).toBeLessThan(1e-7 * Math.max(1, Math.abs(wanted[i])));
  }
  expect(wanted.some((slope) => Math.abs(slope) > 1e-6)).toBe(true);
}
