import { describe, expectTypeOf, test } from 'vitest';
import {
  type CudaDevice,
  type CudaStatus,
  type CudaUnavailableCode,
  type DeviceLike,
  type DType,
  scope,
  Tensor,
  type TypedArray,
  type VarlenError,
  type VarlenErrorCode,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';

declare const tensor: Tensor;
declare const cuSeqlens: Int32Array;

describe('public types', () => {
  test('attention takes tensors and returns tensors, not promises', () => {
    const result = varlenAttention(tensor, tensor, tensor, { cuSeqlens });
    expectTypeOf(result.out).toEqualTypeOf<Tensor>();
    expectTypeOf(result).toExtend<Disposable>();
    expectTypeOf(varlenAttentionBackward(tensor, result.saved).dq).toEqualTypeOf<Tensor>();
    expectTypeOf(tensor.data()).toEqualTypeOf<Promise<TypedArray>>();
  });

  test('an unknown option, a plain array and an undefined option do not compile', () => {
    // @ts-expect-error the name is cuSeqlens
    varlenAttention(tensor, tensor, tensor, { cuSeqlen: cuSeqlens });
    // @ts-expect-error offsets are an Int32Array or a Tensor
    varlenAttention(tensor, tensor, tensor, { cuSeqlens: [0, 3] });
    // @ts-expect-error exactOptionalPropertyTypes: leave the key out instead
    varlenAttention(tensor, tensor, tensor, { cuSeqlens, causal: undefined });
    // @ts-expect-error uninitialised memory needs an element type
    Tensor.empty([2, 2]);
  });

  test('words are unions that a switch can check for completeness', () => {
    expectTypeOf<'bfloat16'>().toExtend<DType>();
    expectTypeOf<'cuda:1'>().toExtend<DeviceLike>();
    expectTypeOf<'gpu'>().not.toExtend<DeviceLike>();
    expectTypeOf<VarlenError['code']>().toEqualTypeOf<VarlenErrorCode>();
    expectTypeOf<string>().not.toExtend<VarlenErrorCode>();
  });

  test('why CUDA is off is there exactly when it is off', () => {
    const status = {} as CudaStatus;
    if (status.available) {
      expectTypeOf(status.devices).toEqualTypeOf<readonly CudaDevice[]>();
      expectTypeOf(status).not.toHaveProperty('reason');
    } else {
      expectTypeOf(status.code).toEqualTypeOf<CudaUnavailableCode>();
      expectTypeOf(status).not.toHaveProperty('devices');
    }
  });

  test('a scope returns what its function returns', () => {
    expectTypeOf(scope(() => ({ tensor, count: 1 }))).toEqualTypeOf<{ tensor: Tensor; count: number }>();
  });
});
