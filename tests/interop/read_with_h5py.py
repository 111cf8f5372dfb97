"""Checks with h5py and h5dump the file that `test_io write PATH` has made (tests/c/io_files.h).

Usage: read_with_h5py.py PATH
"""
import subprocess
import sys

import h5py
import numpy as np

VALUES = np.array([[-2, -1.5, -1], [-0.5, 0, 0.5]])
STORED = {'float64': '<f8', 'float32': '<f4', 'float16': '<f2', 'int64': '<i8', 'int32': '<i4',
          'uint8': 'u1', 'bool': '?', 'float8_e4m3fn': 'u1', 'float8_e5m2': 'u1',
          'float8_e8m0fnu': 'u1'}


def expect(what, condition):
    if not condition:
        sys.exit(f'read_with_h5py: {what}')


def same_bits(what, got, wanted):
    expect(what, got.dtype == wanted.dtype and got.shape == wanted.shape
           and got.tobytes() == wanted.tobytes())


def wanted(name):
    if name in ('float64', 'float32', 'float16'):
        return VALUES.astype(STORED[name])
    if name in ('int64', 'int32'):
        return np.trunc(VALUES).astype(STORED[name])
    if name == 'bool':
        return VALUES != 0
    if name == 'bfloat16':
        return VALUES.astype('<f4')
    return np.arange(6, dtype='u1').reshape(2, 3)


def text(attribute):
    return bytes(attribute).decode()


def main():
    path = sys.argv[1]
    with h5py.File(path, 'r') as f:
        root = f.attrs
        expect('attribute format', text(root['format']) == 'mascon')
        expect('attribute empty', text(root['empty']) == '')
        expect('attribute umlaut', text(root['umlaut']) == 'M\u00e4re')
        expect('attribute most', root['most'] == 2**63 - 1 and root['most'].dtype == np.int64)
        expect('attribute third', root['third'] == 1 / 3)
        expect('attribute yes', root['yes'].dtype == bool and bool(root['yes']))
        expect('attribute no', root['no'].dtype == bool and not bool(root['no']))
        expect('a bare group', isinstance(f['bare/group'], h5py.Group) and len(f['bare/group']) == 0)
        for name in list(STORED) + ['bfloat16']:
            matrix, scalar, empty = f['matrix'][name], f['scalar'][name], f['empty'][name]
            for d in (matrix, scalar, empty):
                expect(f'{d.name} is contiguous', d.chunks is None and d.compression is None)
                expect(f'{d.name} says its dtype', text(d.attrs['dtype']) == name)
                expect(f'{d.name} has a digest', len(text(d.attrs['digest'])) == 32)
                if name in STORED:
                    expect(f'{d.name} has type {d.dtype}', d.dtype == np.dtype(STORED[name]))
            same_bits(f'values of {name}', matrix[...], wanted(name))
            same_bits(f'scalar of {name}', np.asarray(scalar[()]), wanted(name)[0, 0].reshape(()))
            expect(f'empty of {name}', empty.shape == (0, 3) and empty.size == 0)
        expect('the digest of no bytes',
               text(f['empty/float32'].attrs['digest']) == '99aa06d3014798d86001c324468d497f')
        codes = np.arange(65536, dtype='<u4')
        got = f['every/bfloat16'][...]
        value = (codes << 16).view('<f4')
        expect('all bfloat16 values', got.dtype == np.float32 and np.array_equal(got, value, True))
        same_bits('all float16 values', f['every/float16'][...], codes.astype('<u2').view('<f2'))
        raw = np.memmap(path, '<u2', 'r', f['every/bfloat16'].id.get_offset(), (65536,))
        expect('bytes at the offset', np.array_equal(raw, codes))
        expect('large tensors are aligned', f['every/float16'].id.get_offset() % 4096 == 0)
        expect('tied names are one object', f['tied/again'] == f['every/bfloat16'])
        expect('text', bytes(f['text'][...]) == b'{"a": 1}')
    dump = subprocess.run(['h5dump', '-d', '/matrix/bfloat16', path], capture_output=True, text=True)
    expect(f'h5dump: {dump.stderr}', dump.returncode == 0 and '-2, -1.5, -1' in dump.stdout)
    dump = subprocess.run(['h5dump', '-H', path], capture_output=True, text=True)
    expect(f'h5dump -H: {dump.stderr}', dump.returncode == 0 and 'DATASPACE' in dump.stdout)


main()
