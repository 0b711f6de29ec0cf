/** The version of this package; the binary must carry the same one. Equal to package.json's, by test. */
export const VERSION: string = '0.1.0';
