declare module 'node-gyp-build' {
  export default function nodeGypBuild(root: string): unknown;
}
