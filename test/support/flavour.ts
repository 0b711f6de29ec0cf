import { join } from 'node:path';
import { packageRoot } from '../../src/native/load.js';

/** The native build under test, a folder below build-cmake: '' the local one, prebuilds, address or thread. */
const flavour: string = process.env.VARLEN_FLAVOUR ?? '';

/** True when memory and time are the sanitizer's, not the package's. */
export const sanitized: boolean = flavour === 'address' || flavour === 'thread';

/** Where `scripts/build-native.cjs --target varlen_emulated` leaves the addon with an emulated GPU. */
export const emulatedBuild: string = join(packageRoot, 'build-cmake', flavour, 'Release', 'emulated');
