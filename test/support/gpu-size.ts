/** True in a rehearsal on the emulated GPU (`npm run test:gpu -- --emulated`), where large tests are made small. */
export const small: boolean = process.env.VARLEN_GPU_TESTS === 'small';
