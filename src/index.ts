export * from './autograd/index.js';
export * from './batch/index.js';
export * from './dist/index.js';
export * from './errors.js';
export * from './nn/index.js';
export * from './ops/index.js';
export * from './rl/index.js';
export * from './tensor/index.js';
