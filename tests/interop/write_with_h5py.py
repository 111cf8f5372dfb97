"""Makes HDF5 files the way other people do, for `test_io read FOLDER` (tests/c/io_files.h has the
values it expects).

Usage: write_with_h5py.py FOLDER
"""
import os
import sys

import h5py
import numpy as np

N = 105
SHAPE = (7, 5, 3)
BIG = (37, 5, 11)
BIG_N = 37 * 5 * 11


def halves(n, dtype):
    return (np.arange(n) / 2 - 10).astype(dtype)


def ramp(n, dtype):
    return np.arange(n).astype(dtype)


def bfloat16_type(order):
    """The 16-bit float type that HDF5 2 predefines."""
    t = h5py.h5t.IEEE_F32LE.copy()
    t.set_fields(15, 7, 8, 0, 7)
    t.set_precision(16)
    t.set_offset(0)
    t.set_size(2)
    t.set_ebias(127)
    t.set_order(order)
    return t


def put_raw(group, name, type_, array, bytes_, dcpl=None):
    """A dataset of any type whose stored bytes are given."""
    space = h5py.h5s.create_simple(array)
    d = h5py.h5d.create(group.id, name.encode(), type_, space, dcpl)
    d.write(h5py.h5s.ALL, h5py.h5s.ALL, bytes_, type_)
    return h5py.Dataset(d)


def fill(f):
    plain = f.create_group('plain')
    for name, values in {
            'f4': halves(N, '<f4'), 'f8': halves(N, '<f8'), 'f2': halves(N, '<f2'),
            'i8': ramp(N, '<i8'), 'i4': ramp(N, '<i4'), 'u1': (np.arange(N) % 100).astype('u1'),
            'bool': np.arange(N) % 3 == 0}.items():
        plain[name] = values.reshape(SHAPE)
    upper = (halves(N, '<f4').view('<u4') >> 16).astype('<u2')
    put_raw(plain, 'bf16', bfloat16_type(h5py.h5t.ORDER_LE), SHAPE, upper)
    plain['fp8'] = np.full(SHAPE, 0x38, 'u1')
    plain['fp8'].attrs['dtype'] = np.bytes_('float8_e4m3fn')
    plain['scalar'] = np.float32(7)
    plain['empty'] = np.zeros((0, 4), '<f4')
    plain.attrs['i4'] = np.int32(-5)
    plain.attrs['u1'] = np.uint8(200)
    plain.attrs['f4'] = np.float32(0.25)
    plain.attrs['bool'] = np.bool_(True)
    plain.attrs['fixed'] = np.bytes_('abc')
    plain.attrs['text'] = 'of variable length'
    plain.attrs['list'] = [1, 2, 3]
    plain.attrs['beyond_int64'] = np.uint64(2**64 - 1)

    big = f.create_group('big')
    big['f4'] = halves(N, '>f4').reshape(SHAPE)
    big['f2'] = halves(N, '>f2').reshape(SHAPE)
    big['i8'] = ramp(N, '>i8').reshape(SHAPE)
    put_raw(big, 'bf16', bfloat16_type(h5py.h5t.ORDER_BE), SHAPE, upper.astype('>u2'))

    chunked = f.create_group('chunked')
    chunked.create_dataset('gzip', data=halves(BIG_N, '<f4').reshape(BIG), chunks=(8, 2, 4),
                           compression='gzip', shuffle=True)
    chunked.create_dataset('big', data=ramp(BIG_N, '>i4').reshape(BIG), chunks=True)
    chunked.create_dataset('bool', data=(np.arange(BIG_N) % 3 == 0).reshape(BIG), compression=1)
    chunked.create_dataset('checksum', data=halves(BIG_N, '<f8').reshape(BIG), fletcher32=True,
                           chunks=(1, 5, 11))
    chunked.create_dataset('scaled', data=(np.arange(BIG_N) % 100).astype('<i4').reshape(BIG),
                           scaleoffset=0)

    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    dcpl.set_layout(h5py.h5d.COMPACT)
    put_raw(f, 'compact', h5py.h5t.STD_I32LE, (10,), ramp(10, '<i4'), dcpl)
    f.create_dataset('unwritten', (3, 4), '<f4', fillvalue=7)
    f.create_dataset('unwritten_chunks', (10, 100), '<f4', chunks=(3, 7), fillvalue=7)

    odd = f.create_group('odd')
    odd['int16'] = ramp(4, '<i2')
    odd['uint32'] = ramp(4, '<u4')
    odd['complex'] = np.zeros(4, 'c8')
    odd['text'] = ['a', 'b']
    odd['opaque'] = np.zeros(4, 'V2')
    odd.create_dataset('enum', (3,), h5py.enum_dtype({'a': 0, 'b': 1, 'c': 2}, 'i1'))
    odd['long_double'] = np.zeros(3, np.longdouble)
    odd['null'] = h5py.Empty('f4')
    odd['rank9'] = np.zeros((1,) * 9, '<f4')
    odd.create_dataset('lzf', data=np.zeros(100, '<f4'), compression='lzf')
    odd.create_dataset('huge', (2**40,), '<f4')
    odd.create_dataset('overflow', (2**40, 2**40), '<f4', chunks=(1, 1))
    odd.create_dataset('chunk', (2**20, 2**10), '<f4', chunks=(2**19, 2**9))
    odd['contradiction'] = np.zeros(3, '<f4')
    odd['contradiction'].attrs['dtype'] = np.bytes_('int32')
    odd['packed'] = np.zeros(3, 'u1')
    odd['packed'].attrs['dtype'] = np.bytes_('float4_e2m1fn_x2')

    f['named_type'] = np.dtype('<f4')
    f['soft'] = h5py.SoftLink('/plain/f4')
    f['dangling'] = h5py.SoftLink('/nowhere')
    f['tied/f4'] = plain['f4']
    layout = h5py.VirtualLayout((2, N), '<f8')
    layout[0] = h5py.VirtualSource('.', '/flat', (N,))
    f['flat'] = halves(N, '<f8')
    f.create_virtual_dataset('view', layout, fillvalue=np.nan)


def fill_experts(f):
    """Layers of 12 experts, [5, 6] each, as other people store them: plain.lua loads them."""
    weight = np.arange(12 * 5 * 6).reshape(12, 5, 6)
    bias = np.arange(12 * 5).reshape(12, 5) / 4
    storages = {'plain': {}, 'chunked': {'chunks': True},
                'gzip': {'compression': 'gzip', 'shuffle': True, 'fletcher32': True}}
    for storage, options in storages.items():
        for order, type_ in {'little': '<f4', 'big': '>f4'}.items():
            group = f.create_group(f'{storage}/{order}')
            for name, values in {'weight': weight, 'bias': bias}.items():
                group.create_dataset(f'single/{name}', data=values.astype(type_), **options)
                for i, part in enumerate(values):
                    group.create_dataset(f'per_expert/{name}{i}', data=part.astype(type_),
                                         **options)


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)

    def create(name, **options):
        return h5py.File(os.path.join(folder, name), 'w', **options)

    for name, options in {'default.h5': {}, 'latest.h5': {'libver': ('v110', 'v110')},
                          'userblock.h5': {'userblock_size': 2048}}.items():
        with create(name, **options) as f:
            fill(f)
    for name, options in {'experts.h5': {}, 'experts_latest.h5': {'libver': ('v110', 'v110')}}.items():
        with create(name, **options) as f:
            fill_experts(f)
    with create('many.h5') as f:
        for i in range(3000):
            f[f'g/{i}'] = np.int64(i)
    with create('external_link.h5') as f:
        f['out'] = h5py.ExternalLink('default.h5', '/plain')
    with create('external_storage.h5') as f:
        f.create_dataset('stolen', (16,), 'u1', external=[('/etc/passwd', 0, 16)])
    with create('foreign_view.h5') as f:
        layout = h5py.VirtualLayout(SHAPE, '<f4')
        layout[...] = h5py.VirtualSource('default.h5', '/plain/f4', SHAPE)
        f.create_virtual_dataset('g/view', layout)
    with create('cycle.h5') as f:
        inner = f.create_group('a/b')
        inner['back'] = f['a']
    with create('deep.h5') as f:
        f.create_group('/'.join(['g'] * 33))
    if os.fork() == 0:
        f = create('unclosed.h5', libver=('v110', 'v110'))
        f['x'] = 1
        f.flush()
        os._exit(0)
    os.wait()
    with create('attributes.h5', libver=('v110', 'v110')) as f:
        for i in range(1025):
            f.attrs[str(i)] = i


main()
