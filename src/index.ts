export * from './autograd/index.js';
export * from './errors.js';
export * from './ops/index.js';
export * from './tensor/index.js';
