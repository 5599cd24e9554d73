/**
 * How QMP commands declare their arguments: checked before anything is done, and told by `query-qmp-schema`. Types in
 * TypeScript follow from the declaration.
 */
import { JobError } from '../job/job-error.ts';

interface ArgumentType<T> {
  /** As QEMU's messages name it. */
  readonly expected: string;
  /** The type's name in the introspected schema. */
  readonly schemaName: string;
  readonly values?: readonly string[];
  readonly isOptional: boolean;
  accepts(value: unknown): value is T;
}

export type Arguments = Readonly<Record<string, ArgumentType<unknown>>>;

type Required<A extends Arguments> = {
  [K in keyof A as A[K] extends { readonly isOptional: true } ? never : K]: TypeOf<A[K]>;
};
type Optional<A extends Arguments> = {
  [K in keyof A as A[K] extends { readonly isOptional: true } ? K : never]?: TypeOf<A[K]>;
};
type TypeOf<T> = T extends ArgumentType<infer V> ? V : never;

/** The values that arguments so declared have. */
export type ArgumentsOf<A extends Arguments> = Required<A> & Optional<A>;

type Kind<T> = ArgumentType<T> & { readonly isOptional: false };

export const text: Kind<string> = {
  expected: 'string',
  schemaName: 'str',
  isOptional: false,
  accepts: (value): value is string => typeof value === 'string',
};

export const integer: Kind<number> = {
  expected: 'integer',
  schemaName: 'int',
  isOptional: false,
  accepts: (value): value is number => Number.isSafeInteger(value),
};

export const flag: Kind<boolean> = {
  expected: 'boolean',
  schemaName: 'bool',
  isOptional: false,
  accepts: (value): value is boolean => typeof value === 'boolean',
};

/** A list of such values; `itemName` as QEMU names their type. */
export const listOf = <T>(itemName: string, accepts: (item: unknown) => item is T): Kind<T[]> => ({
  expected: 'array',
  schemaName: `[${itemName}]`,
  isOptional: false,
  accepts: (value): value is T[] => Array.isArray(value) && value.every(accepts),
});

/** An object, whose members the command looks at itself. */
export const record: Kind<Readonly<Record<string, unknown>>> = {
  expected: 'object',
  schemaName: 'any',
  isOptional: false,
  accepts: (value): value is Readonly<Record<string, unknown>> =>
    typeof value === 'object' && value !== null && !Array.isArray(value),
};

/** A name, or in its place what it would be the name of. */
export const textOrRecord: Kind<string | Readonly<Record<string, unknown>>> = {
  ...record,
  expected: 'string or object',
  accepts: (value): value is string | Readonly<Record<string, unknown>> =>
    typeof value === 'string' || record.accepts(value),
};

export const nothing: Kind<null> = {
  expected: 'null',
  schemaName: 'null',
  isOptional: false,
  accepts: (value): value is null => value === null,
};

/** One of QEMU's enumerations, by its name there. */
export const choice = <V extends string>(schemaName: string, values: readonly V[]): Kind<V> => ({
  expected: 'string',
  schemaName,
  values,
  isOptional: false,
  accepts: (value): value is V => (values as readonly unknown[]).includes(value),
});

export const optional = <T>(type: Kind<T>): ArgumentType<T> & { readonly isOptional: true } => ({
  ...type,
  isOptional: true,
});

/** Errors: JobError with QEMU's words for an argument that is missing, unknown, or of another type. */
export const checkArguments = <A extends Arguments>(
  declared: A,
  given: Readonly<Record<string, unknown>>,
): ArgumentsOf<A> => {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(declared, name)) throw new JobError(`Parameter '${name}' is unexpected`);
  }
  for (const [name, type] of Object.entries(declared)) {
    if (!Object.hasOwn(given, name)) {
      if (type.isOptional) continue;
      throw new JobError(`Parameter '${name}' is missing`);
    }
    const value = given[name];
    if (type.accepts(value)) continue;
    if (type.values !== undefined && typeof value === 'string') {
      throw new JobError(`Parameter '${name}' does not accept value '${value}'`);
    }
    throw new JobError(`Invalid parameter type for '${name}', expected: ${type.expected}`);
  }
  return given as ArgumentsOf<A>;
};

export interface QmpCommand<Context, A extends Arguments = Arguments> {
  readonly name: string;
  readonly arguments: A;
  /** Name of what it returns; `nothing` for the empty object. */
  readonly returns: string;
  run(context: Context, given: ArgumentsOf<A>): Promise<unknown> | unknown;
}

/** Keeps the arguments' types from declaration to `run`. */
export const defineQmp = <Context, A extends Arguments>(
  command: QmpCommand<Context, A>,
): QmpCommand<Context> => command as unknown as QmpCommand<Context>;

const BUILTIN = {
  str: 'string',
  int: 'int',
  bool: 'boolean',
  null: 'null',
  any: 'value',
} as const;

/** `query-qmp-schema`: SchemaInfo records of these commands and events. */
export const introspect = (
  commands: readonly QmpCommand<never>[],
  events: readonly string[],
): readonly object[] => {
  const types = new Map<string, object>();
  for (const [name, json] of Object.entries(BUILTIN)) {
    types.set(name, { name, 'meta-type': 'builtin', 'json-type': json });
  }
  types.set('nothing', { name: 'nothing', 'meta-type': 'object', members: [] });
  const records: object[] = [];
  for (const command of commands) {
    const members = Object.entries(command.arguments).map(([name, type]) => {
      if (type.values !== undefined) {
        const members = type.values.map((value) => ({ name: value }));
        const { schemaName, values } = type;
        types.set(schemaName, { name: schemaName, 'meta-type': 'enum', members, values });
      }
      if (type.expected === 'array') {
        const { schemaName } = type;
        const itemType = schemaName.slice(1, -1);
        types.set(schemaName, {
          name: schemaName,
          'meta-type': 'array',
          'element-type': itemType,
        });
        types.set(itemType, { name: itemType, 'meta-type': 'object', members: [] });
      }
      return { name, type: type.schemaName, ...(type.isOptional ? { default: null } : {}) };
    });
    const argumentsType = `${command.name}-arg`;
    types.set(argumentsType, { name: argumentsType, 'meta-type': 'object', members });
    if (!types.has(command.returns)) {
      types.set(command.returns, { name: command.returns, 'meta-type': 'object', members: [] });
    }
    const { name, returns } = command;
    records.push({ name, 'meta-type': 'command', 'arg-type': argumentsType, 'ret-type': returns });
  }
  for (const name of events) records.push({ name, 'meta-type': 'event', 'arg-type': 'nothing' });
  return [...records, ...types.values()];
};
