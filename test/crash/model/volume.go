package model

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// Sector is the unit that a disk writes whole, in bytes.
const Sector = 512

// chunkSectors is how many sectors are kept together: 1 MiB of them.
const chunkSectors = 2048

// ChunkSize is the number of bytes in a chunk.
const ChunkSize = chunkSectors * Sector

// Pool gives equal sectors equal numbers, so that a large volume is a short list
// and two volumes are compared without their bytes. Sector 0 is all zeros. The zero
// value is not usable.
type Pool struct {
	ids  map[[Sector]byte]uint32
	data [][Sector]byte
}

// NewPool returns a pool that knows zeros only.
func NewPool() *Pool {
	return &Pool{ids: map[[Sector]byte]uint32{{}: 0}, data: make([][Sector]byte, 1)}
}

func (p *Pool) id(s [Sector]byte) uint32 {
	id, ok := p.ids[s]
	if !ok {
		id = uint32(len(p.data))
		p.ids[s] = id
		p.data = append(p.data, s)
	}
	return id
}

// chunk is never changed once a volume holds it.
type chunk struct {
	ids  [chunkSectors]uint32
	hash [sha256.Size]byte
}

func (c *chunk) seal() *chunk {
	var raw [4 * chunkSectors]byte
	for i, id := range c.ids {
		binary.LittleEndian.PutUint32(raw[4*i:], id)
	}
	c.hash = sha256.Sum256(raw[:])
	return c
}

// Volume is the content of a block device: a slot, or a disk. It is a value: Write
// returns another one, which shares what did not change.
type Volume struct {
	pool   *Pool
	size   int64
	chunks []*chunk // nil is all zeros
}

// ReadVolume reads a volume of size bytes, a multiple of Sector.
func (p *Pool) ReadVolume(r io.ReaderAt, size int64) (Volume, error) {
	v := Volume{p, size, make([]*chunk, (size+ChunkSize-1)/ChunkSize)}
	for i := range v.chunks {
		buf := make([]byte, ChunkSize)
		n := min(ChunkSize, size-int64(i)*ChunkSize)
		if _, err := r.ReadAt(buf[:n], int64(i)*ChunkSize); err != nil && err != io.EOF {
			return Volume{}, err
		}
		v = v.Write(int64(i)*ChunkSize, buf)
	}
	return v, nil
}

// Write returns the volume with whole sectors changed: data has a multiple of
// Sector bytes and begins at one.
func (v Volume) Write(off int64, data []byte) Volume {
	return v.write(off/Sector, v.pool.numbers(data))
}

// numbers are those of the sectors of data.
func (p *Pool) numbers(data []byte) []uint32 {
	ids := make([]uint32, len(data)/Sector)
	for i := range ids {
		ids[i] = p.id([Sector]byte(data[i*Sector:]))
	}
	return ids
}

func (v Volume) write(sector int64, ids []uint32) Volume {
	w := Volume{v.pool, v.size, append([]*chunk(nil), v.chunks...)}
	for len(ids) > 0 {
		i, first := sector/chunkSectors, sector%chunkSectors
		n := min(int64(len(ids)), chunkSectors-first)
		c := &chunk{}
		if old := w.chunks[i]; old != nil {
			c.ids = old.ids
		}
		copy(c.ids[first:], ids[:n])
		w.chunks[i] = nil
		if c.ids != [chunkSectors]uint32{} {
			w.chunks[i] = c.seal()
		}
		sector, ids = sector+n, ids[n:]
	}
	return w
}

// Size is the length in bytes.
func (v Volume) Size() int64 { return v.size }

// Chunks is the number of chunks, the last one perhaps beyond the end.
func (v Volume) Chunks() int { return len(v.chunks) }

// SameChunk reports whether both volumes hold the same bytes in chunk i.
func (v Volume) SameChunk(w Volume, i int) bool {
	a, b := v.chunks[i], w.chunks[i]
	return a == b || a != nil && b != nil && a.hash == b.hash
}

// ChunkHash identifies the bytes of chunk i; it is zero for zeros.
func (v Volume) ChunkHash(i int) [sha256.Size]byte {
	if v.chunks[i] == nil {
		return [sha256.Size]byte{}
	}
	return v.chunks[i].hash
}

// Chunk returns the bytes of chunk i.
func (v Volume) Chunk(i int) []byte {
	buf := make([]byte, ChunkSize)
	if c := v.chunks[i]; c != nil {
		for s, id := range c.ids {
			if id != 0 {
				copy(buf[s*Sector:], v.pool.data[id][:])
			}
		}
	}
	return buf
}

// Hash identifies the content of the volume.
func (v Volume) Hash() [sha256.Size]byte {
	h := sha256.New()
	for i := range v.chunks {
		sum := v.ChunkHash(i)
		h.Write(sum[:]) //nolint:errcheck // a hash takes everything
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Zeros is a volume of size bytes that holds nothing.
func (p *Pool) Zeros(size int64) Volume {
	return Volume{p, size, make([]*chunk, (size+ChunkSize-1)/ChunkSize)}
}
