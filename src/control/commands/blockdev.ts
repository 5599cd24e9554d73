/** `blockdev-add` and `blockdev-del`: nodes that jobs copy to. */
import { JobError } from '../../job/job-error.ts';
import type { ControlContext } from '../context.ts';
import {
  choice,
  defineQmp,
  flag,
  nothing,
  optional,
  type QmpCommand,
  record,
  text,
  textOrRecord,
} from '../schema.ts';

const PROTOCOLS = ['file', 'host_device', 'nbd'] as const;
const FORMATS = ['raw', 'qcow2', 'add-cow'] as const;

const PROTOCOL_ARGUMENTS = ['driver', 'filename', 'server', 'export', 'node-name'] as const;

type Fields = Readonly<Record<string, unknown>>;

/** The path or URL that a protocol driver's arguments name. Errors: JobError. */
export const placeOf = (given: Fields): string => {
  switch (given['driver']) {
    case 'file':
    case 'host_device':
      return textField(given, 'filename');
    case 'nbd':
      return nbdUrl(given);
    default:
      throw new JobError(`Unknown driver '${String(given['driver'])}'`);
  }
};

const textField = (given: Fields, name: string): string => {
  const value = given[name];
  if (value === undefined) throw new JobError(`Parameter '${name}' is missing`);
  if (typeof value === 'string') return value;
  throw new JobError(`Invalid parameter type for '${name}', expected: string`);
};

const nbdUrl = (given: Fields): string => {
  const server = given['server'] as Fields | undefined;
  if (server === undefined) throw new JobError("Parameter 'server' is missing");
  const name = given['export'] === undefined ? '' : textField(given, 'export');
  const path = name.split('/').map(encodeURIComponent).join('/');
  switch (server['type']) {
    case 'unix':
      return `nbd+unix:///${path}?socket=${encodeURIComponent(textField(server, 'path'))}`;
    case 'inet': {
      const host = textField(server, 'host');
      const shown = host.includes(':') ? `[${host}]` : host;
      return `nbd://${shown}:${textField(server, 'port')}/${path}`;
    }
    default:
      throw new JobError(
        `Parameter 'server.type' does not accept value '${String(server['type'])}'`,
      );
  }
};

const isProtocol = (driver: string): boolean => (PROTOCOLS as readonly string[]).includes(driver);

const refuseUnknown = (given: Fields, known: readonly string[], prefix: string): void => {
  for (const name of Object.keys(given)) {
    if (!known.includes(name)) throw new JobError(`Parameter '${prefix}${name}' is unexpected`);
  }
};

export const blockdevCommands: readonly QmpCommand<ControlContext>[] = [
  defineQmp({
    name: 'blockdev-add',
    arguments: {
      driver: choice('BlockdevDriver', [...PROTOCOLS, ...FORMATS]),
      'node-name': text,
      file: optional(textOrRecord),
      filename: optional(text),
      server: optional(record),
      export: optional(text),
      backing: optional(nothing),
      'read-only': optional(flag),
      'auto-read-only': optional(flag),
      discard: optional(choice('BlockdevDiscardOptions', ['unmap', 'ignore'])),
    },
    returns: 'nothing',
    run: async ({ targets }: ControlContext, given) => {
      const { driver, file } = given;
      const nodeName = given['node-name'];
      if (given['read-only'] === true) {
        throw new JobError(`Node '${nodeName}' could only be read: a job could not copy to it`);
      }
      if (isProtocol(driver)) {
        if (file !== undefined) throw new JobError("Parameter 'file' is unexpected");
        const path = placeOf(given);
        await targets.add({ nodeName, path, format: null, mustStandAlone: false });
        return {};
      }
      for (const name of ['filename', 'server', 'export'] as const) {
        if (given[name] !== undefined) throw new JobError(`Parameter '${name}' is unexpected`);
      }
      if (file === undefined) throw new JobError("A block device must be specified for 'file'");
      const declared = { nodeName, format: driver, mustStandAlone: given.backing === null };
      if (typeof file === 'string') {
        await targets.addOver(declared, file);
        return {};
      }
      refuseUnknown(file, PROTOCOL_ARGUMENTS, 'file.');
      await targets.add({ ...declared, path: placeOf(file) });
      return {};
    },
  }),
  defineQmp({
    name: 'blockdev-del',
    arguments: { 'node-name': text },
    returns: 'nothing',
    run: async ({ targets }: ControlContext, given) => {
      await targets.remove(given['node-name']);
      return {};
    },
  }),
];
