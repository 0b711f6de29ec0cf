declare module 'node-gyp-build' {
  const nodeGypBuild: { resolve(packageRoot: string): string };
  export default nodeGypBuild;
}

declare module '*.node' {
  const binary: unknown;
  export default binary;
}
