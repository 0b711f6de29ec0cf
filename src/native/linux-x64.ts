// Entry point `varlen/linux-x64`: names the binary by a literal path, which bundlers can follow.
// Import it before the first call; everything else of the package stays as it is.
import binary from '../../prebuilds/linux-x64/varlen.glibc.node';
import { provideNative } from './load.js';

provideNative(binary);
