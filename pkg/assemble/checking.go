package assemble

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"github.com/kapernikov/osctl/pkg/osimage"
)

// between is how many segments are on the way from the decoder to the caller:
// one is decoded while another is hashed and written, and one evens them out.
const between = 3

// decoded is a segment that nobody has compared with the signed config yet.
type decoded struct {
	pack    pack
	segment int
	data    []byte
}

// checking is the second half of the work: it verifies segments and hands them
// on, in order, while the first half decodes the next ones.
type checking struct {
	rootfs osimage.Rootfs
	put    func(i int, data []byte) error
	zero   [sha256.Size]byte // digest of a full segment of zeros
	blank  []byte            // such a segment
	free   chan []byte
	full   chan decoded // closed by the decoding side
	done   chan struct{}
	err    error // the first one; read it after done
}

func newChecking(rootfs osimage.Rootfs, put func(i int, data []byte) error) *checking {
	c := &checking{
		rootfs: rootfs, put: put, blank: make([]byte, osimage.SegmentSize),
		free: make(chan []byte, between), full: make(chan decoded, between), done: make(chan struct{}),
	}
	c.zero = sha256.Sum256(c.blank)
	for range between {
		c.free <- make([]byte, osimage.SegmentSize)
	}
	return c
}

// run ends when full is closed. After an error it calls stop, and takes what
// still comes without looking at it.
func (c *checking) run(stop func(error)) {
	defer close(c.done)
	for d := range c.full {
		if c.err == nil {
			if c.err = c.check(d); c.err != nil {
				stop(c.err)
			}
		}
		c.free <- d.data[:cap(d.data)]
	}
}

func (c *checking) check(d decoded) error {
	if !c.matches(d) {
		return broken(d.pack, fmt.Errorf("segment %d has another digest than the signed config says", d.segment))
	}
	return c.put(d.segment, d.data)
}

// matches compares a segment with the signed config. Where that wants zeros,
// looking for another byte is the same proof and costs a tenth.
func (c *checking) matches(d decoded) bool {
	want := c.rootfs.SegmentDigest(d.segment)
	if len(d.data) == len(c.blank) && want == c.zero {
		return bytes.Equal(d.data, c.blank)
	}
	return sha256.Sum256(d.data) == want
}
