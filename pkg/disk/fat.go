package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"strings"
)

// The file system of the ESP. The format is that of Microsoft's FAT32 File
// System Specification 1.03; figures and field names are from there.
const (
	fatReserved  = 32 // sectors before the first table
	fatTables    = 2
	fatEntry     = 32    // bytes of a directory entry
	fatFirstData = 2     // number of the first cluster, which is the root's
	fatMinimum   = 65525 // clusters; fewer are FAT16 to every reader
	fatEnd       = 0x0FFFFFFF
	fatLabel     = "BOOT       " // volume label, 11 bytes

	attrLabel  = 0x08
	attrFolder = 0x10
	attrFile   = 0x20

	// Flags of DIR_NTRes: a name that is all lower case needs no long name.
	lowerBase, lowerExtension = 0x08, 0x10

	// fatBlock is the alignment of the data area, every folder and every
	// file, in bytes: the physical sector of most disks with logical sectors
	// of 512. So a torn write of one file cannot hit another one.
	fatBlock = 4096
)

// errName is matched for a name that does not fit into a FAT entry.
var errName = errors.New("each part of the path must be a name of at most 8 and 3 ASCII letters, digits, - and _, all upper or all lower case")

// image is the content of a new file system: runs of bytes, and zeroes where
// there is no run.
type image struct {
	size int64
	runs []run
}

type run struct {
	off  int64
	data []byte
}

// fill puts the bytes from off on into p.
func (m *image) fill(p []byte, off int64) {
	clear(p)
	end := off + int64(len(p))
	for _, r := range m.runs {
		from, to := max(off, r.off), min(end, r.off+int64(len(r.data)))
		if from < to {
			copy(p[from-off:to-off], r.data[from-r.off:to-r.off])
		}
	}
}

// fat is a FAT32 under construction. Clusters are handed out in ascending
// order and never freed, so every file is one contiguous run.
type fat struct {
	image         image
	hidden        uint32 // sectors of the disk before the file system
	total         uint32 // sectors
	perCluster    uint32 // sectors
	sectorsPerFAT uint32
	clusters      uint32
	table         []byte
	next          uint32 // lowest cluster that was not handed out
	used          uint32 // clusters
}

// node is a file or folder to be written.
type node struct {
	name     string
	folder   bool
	content  []byte
	children []*node
	cluster  uint32 // first one; 0 for an empty file
}

// newFAT lays out a FAT32 of size bytes that starts offset bytes into the
// disk and holds the files.
func newFAT(size, offset int64, files []File) (*image, error) {
	f := &fat{total: uint32(size / SectorSize), hidden: uint32(offset / SectorSize), perCluster: 1, next: fatFirstData}
	f.image.size = size
	const largestFine = 260 * MiB // as in the specification's table for 512-byte clusters
	if size > largestFine {
		f.perCluster = 8
	}
	if size/SectorSize > math.MaxUint32 || offset/SectorSize > math.MaxUint32 {
		return nil, errors.New("too large for FAT32")
	}
	// A table as if it needed no room itself: an entry for every cluster and
	// the two reserved ones, rounded up to keep the data area aligned.
	entries := (f.total-fatReserved)/f.perCluster + fatFirstData
	f.sectorsPerFAT = roundUp(roundUp(entries*4, SectorSize)/SectorSize, fatBlock/SectorSize)
	f.clusters = (f.total - fatReserved - fatTables*f.sectorsPerFAT) / f.perCluster
	if f.clusters < fatMinimum {
		return nil, fmt.Errorf("%d clusters are too few for FAT32, %d are needed", f.clusters, fatMinimum)
	}
	f.table = make([]byte, f.sectorsPerFAT*SectorSize)
	f.setEntry(0, 0x0FFFFFF8)
	f.setEntry(1, fatEnd)

	root := &node{folder: true}
	for _, file := range files {
		if err := root.add(file); err != nil {
			return nil, fmt.Errorf("adding %q: %w", file.Path, err)
		}
	}
	if err := f.place(root); err != nil {
		return nil, err
	}
	f.writeFolder(root, nil)
	f.writeHead()
	return &f.image, nil
}

// roundUp returns the smallest multiple of unit that is at least n.
func roundUp(n, unit uint32) uint32 { return (n + unit - 1) / unit * unit }

// add puts a file into the tree, with the folders on the way to it.
func (n *node) add(file File) error {
	if !fs.ValidPath(file.Path) || file.Path == "." {
		return fs.ErrInvalid
	}
	parts := strings.Split(file.Path, "/")
	for i, part := range parts {
		if _, _, err := shortName(part); err != nil {
			return err
		}
		last := i == len(parts)-1
		child := n.child(part)
		if child != nil && (last || !child.folder) {
			return fs.ErrExist
		}
		if child == nil {
			child = &node{name: part, folder: !last}
			n.children = append(n.children, child)
		}
		n = child
	}
	n.content = file.Content
	return nil
}

// child finds a child; names differ by more than case.
func (n *node) child(name string) *node {
	for _, c := range n.children {
		if strings.EqualFold(c.name, name) {
			return c
		}
	}
	return nil
}

// place gives clusters to a node and everything below it: a folder before
// its children.
func (f *fat) place(n *node) error {
	length := len(n.content)
	if n.folder {
		length = (len(n.children) + 2) * fatEntry // . and .., or the label
	}
	perCluster := int(f.perCluster) * SectorSize
	count := (length + perCluster - 1) / perCluster
	f.next = fatFirstData + roundUp(f.next-fatFirstData, max(1, fatBlock/uint32(perCluster)))
	if int64(f.next)+int64(count) > int64(fatFirstData)+int64(f.clusters) {
		return fmt.Errorf("placing %q (%d bytes): %w", n.name, length, errFull)
	}
	if count > 0 {
		n.cluster = f.next
	}
	for i := range count {
		value := f.next + 1
		if i == count-1 {
			value = fatEnd
		}
		f.setEntry(f.next, value)
		f.next++
		f.used++
	}
	for _, child := range n.children {
		if err := f.place(child); err != nil {
			return err
		}
	}
	return nil
}

// errFull is matched when the files do not fit.
var errFull = errors.New("the file system is too small for its files")

func (f *fat) setEntry(cluster, value uint32) {
	binary.LittleEndian.PutUint32(f.table[cluster*4:], value)
}

// put writes data at a cluster, padded with the zeroes of the image.
func (f *fat) put(cluster uint32, data []byte) {
	sector := int64(fatReserved+fatTables*f.sectorsPerFAT) + int64(cluster-fatFirstData)*int64(f.perCluster)
	f.image.runs = append(f.image.runs, run{sector * SectorSize, data})
}

// writeFolder writes a folder and everything below it.
func (f *fat) writeFolder(n, parent *node) {
	var entries []byte
	if parent == nil {
		entries = append(entries, entry(fatLabel, attrLabel, 0, 0)...)
	} else {
		up := parent.cluster
		if up == fatFirstData {
			up = 0 // the root is always called 0 here
		}
		entries = append(entries, entry(".          ", attrFolder, n.cluster, 0)...)
		entries = append(entries, entry("..         ", attrFolder, up, 0)...)
	}
	for _, child := range n.children {
		name, lower, _ := shortName(child.name)
		attributes := byte(attrFile)
		if child.folder {
			attributes = attrFolder
			f.writeFolder(child, n)
		} else if child.cluster != 0 {
			f.put(child.cluster, child.content)
		}
		e := entry(name, attributes, child.cluster, uint32(len(child.content)))
		e[12] = lower
		entries = append(entries, e...)
	}
	f.put(n.cluster, entries)
}

// entry is a directory entry. Its times are the first moment that FAT can
// express, since a machine that is being installed may have no clock.
func entry(name string, attributes byte, cluster, size uint32) []byte {
	const firstDay = 1<<5 | 1 // 1 January 1980
	e := make([]byte, fatEntry)
	copy(e, name)
	e[11] = attributes
	binary.LittleEndian.PutUint16(e[16:], firstDay) // created
	binary.LittleEndian.PutUint16(e[18:], firstDay) // accessed
	binary.LittleEndian.PutUint16(e[20:], uint16(cluster>>16))
	binary.LittleEndian.PutUint16(e[24:], firstDay) // written
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], size)
	return e
}

// shortName returns the 11 bytes of a name and the flags for lower case.
func shortName(name string) (string, byte, error) {
	base, extension, dotted := strings.Cut(name, ".")
	if base == "" || len(base) > 8 || len(extension) > 3 || dotted && extension == "" {
		return "", 0, errName
	}
	var flags byte
	for i, part := range []string{base, extension} {
		lower, upper := strings.ToLower(part), strings.ToUpper(part)
		if strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || part != lower && part != upper {
			return "", 0, errName
		}
		if part != upper {
			flags |= [...]byte{lowerBase, lowerExtension}[i]
		}
	}
	return strings.ToUpper(fmt.Sprintf("%-8s%-3s", base, extension)), flags, nil
}

// writeHead writes boot sector and FSInfo, their copies, and the tables.
func (f *fat) writeHead() {
	boot := make([]byte, SectorSize)
	copy(boot, "\xEB\x58\x90osctl   ") // jump over the fields, OEM name
	binary.LittleEndian.PutUint16(boot[11:], SectorSize)
	boot[13] = byte(f.perCluster)
	binary.LittleEndian.PutUint16(boot[14:], fatReserved)
	boot[16] = fatTables
	boot[21] = 0xF8                               // fixed disk
	binary.LittleEndian.PutUint16(boot[24:], 63)  // sectors per track, of no
	binary.LittleEndian.PutUint16(boot[26:], 255) // meaning, as are the heads
	binary.LittleEndian.PutUint32(boot[28:], f.hidden)
	binary.LittleEndian.PutUint32(boot[32:], f.total)
	binary.LittleEndian.PutUint32(boot[36:], f.sectorsPerFAT)
	binary.LittleEndian.PutUint32(boot[44:], fatFirstData)
	binary.LittleEndian.PutUint16(boot[48:], 1) // FSInfo
	binary.LittleEndian.PutUint16(boot[50:], 6) // copy of the boot sector
	boot[64], boot[66] = 0x80, 0x29             // hard disk; serial and label follow
	binary.LittleEndian.PutUint32(boot[67:], rand.Uint32())
	copy(boot[71:], fatLabel+"FAT32   ")
	boot[510], boot[511] = 0x55, 0xAA

	info := make([]byte, SectorSize)
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	binary.LittleEndian.PutUint32(info[488:], f.clusters-f.used)
	binary.LittleEndian.PutUint32(info[492:], f.next-1)
	info[510], info[511] = 0x55, 0xAA

	for _, sector := range []int64{0, 6} {
		f.image.runs = append(f.image.runs, run{sector * SectorSize, boot}, run{(sector + 1) * SectorSize, info})
	}
	for i := range int64(fatTables) {
		sector := fatReserved + i*int64(f.sectorsPerFAT)
		f.image.runs = append(f.image.runs, run{sector * SectorSize, f.table})
	}
}
