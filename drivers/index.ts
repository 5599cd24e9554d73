/** The list of drivers: the only one. */
import type { DriverDescriptor } from '../src/block/driver.ts';
import { addCow } from './add-cow/index.ts';
import { file } from './file/index.ts';
import { http } from './http/index.ts';
import { nbd } from './nbd/index.ts';
import { qcow2 } from './qcow2/index.ts';
import { raw } from './raw/index.ts';

export const drivers: readonly DriverDescriptor[] = [file, http, nbd, raw, qcow2, addCow];
