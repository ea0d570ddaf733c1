package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Fixed identities of every ext4 that osctl makes. The hash seed decides the
// order inside large directories; with a fixed one two releases differ only
// where their files differ. Nothing mounts a slot by its UUID.
const (
	ext4UUID = "0d1b4b5e-6f0c-4e0e-9d4d-6f7363746c31"
	ext4Seed = "6f736374-6c2e-4f8b-8a52-657874347365"
)

// ext4Features is the whole list. No journal: the file system is never mounted
// writable. Nothing that GRUB 2.06 cannot read (metadata_csum_seed, orphan_file).
const ext4Features = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

const (
	ext4Block = 4096
	ext4Inode = 256
)

// tree is what has to be known of a directory before it becomes ext4.
type tree struct {
	dir    string
	files  []treeFile
	newest time.Time
	blocks int64 // of content, in ext4Block
}

type treeFile struct {
	path  string // "/" for the root
	mtime time.Time
}

// scan walks the tree without following links and without crossing into other
// file systems' pseudo files.
func scan(dir string) (*tree, error) {
	t := &tree{dir: dir}
	linked := map[[2]uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := "/" + rel
		if rel == "." {
			name = "/"
		}
		// debugfs reads its commands by line and cannot escape a quote.
		if strings.ContainsAny(name, "\"\n\r") {
			return fmt.Errorf("%w: the name %q has a quote or a line break", ErrRootfs, name)
		}
		t.files = append(t.files, treeFile{path: name, mtime: info.ModTime()})
		if info.ModTime().After(t.newest) {
			t.newest = info.ModTime()
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no inode information", path)
		}
		id := [2]uint64{stat.Dev, stat.Ino}
		if info.Mode().IsDir() || !linked[id] {
			t.blocks += contentBlocks(info)
		}
		linked[id] = true
		return nil
	})
	return t, err
}

// contentBlocks estimates the blocks of one file: its data and, for large files
// and directories, one more for extents or index.
func contentBlocks(info fs.FileInfo) int64 {
	size := info.Size()
	switch {
	case info.Mode().IsRegular():
		blocks := (size + ext4Block - 1) / ext4Block
		return blocks + blocks/1024
	case info.IsDir():
		return max(1, (size+ext4Block-1)/ext4Block) + 1
	case info.Mode()&fs.ModeSymlink != 0 && size >= 60: // shorter ones live in the inode
		return 1
	}
	return 0
}

// makeExt4 makes the file system. size 0 means as small as it fits: an estimate
// that is raised until mkfs.ext4 succeeds, by fixed steps and so reproducibly.
func (t *tree) makeExt4(ctx context.Context, path string, size int64, created time.Time) error {
	inodes := int64(len(t.files)) + 64
	fixed := size
	if size == 0 {
		size = (t.blocks*ext4Block + inodes*ext4Inode) * 102 / 100
		size += 4 << 20
	}
	for try := 0; ; try++ {
		size = (size + 1<<20 - 1) &^ (1<<20 - 1)
		err := t.mkfs(ctx, path, size, inodes, created)
		if err == nil {
			break
		}
		full := strings.Contains(err.Error(), "Could not allocate block") || strings.Contains(err.Error(), "No free space")
		if !full || ctx.Err() != nil {
			return err
		}
		if fixed != 0 || try == 20 {
			return fmt.Errorf("%w: the tree does not fit into %d bytes: %w", ErrRootfs, size, err)
		}
		size += size / 20
	}
	if err := t.setTimes(ctx, path, created); err != nil {
		return err
	}
	// What e2fsck -n finds is our mistake, and must not reach a machine.
	if _, err := run(ctx, nil, "e2fsck", "-f", "-n", path); err != nil {
		return fmt.Errorf("checking the new file system: %w", err)
	}
	return nil
}

func (t *tree) mkfs(ctx context.Context, path string, size, inodes int64, created time.Time) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
		return err
	}
	// The host's mke2fs.conf has no say: without one, the tool takes what it was built
	// with.
	env := append(fakeTime(created), "MKE2FS_CONFIG=/nonexistent/mke2fs.conf")
	_, err = run(ctx, env, "mkfs.ext4", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(ext4Block), "-I", strconv.Itoa(ext4Inode),
		"-m", "0", "-N", strconv.FormatInt(inodes, 10), "-O", ext4Features, "-U", ext4UUID,
		"-E", "hash_seed="+ext4Seed+",lazy_itable_init=0,nodiscard,root_owner=0:0", "-d", t.dir, path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; install e2fsprogs", err)
	}
	return err
}

// setTimes replaces the times that mkfs.ext4 -d copied from the build host: the
// change and access times become the modification time, and no time is after
// created.
func (t *tree) setTimes(ctx context.Context, path string, created time.Time) error {
	var script strings.Builder
	for _, f := range t.files {
		seconds := max(0, min(f.mtime.Unix(), created.Unix()))
		fields := []string{"atime", "ctime"}
		if seconds != f.mtime.Unix() {
			fields = append(fields, "mtime")
		}
		for _, field := range fields {
			fmt.Fprintf(&script, "set_inode_field \"%s\" %s @%d\n", f.path, field, seconds)
		}
	}
	commands := path + ".times"
	if err := os.WriteFile(commands, []byte(script.String()), 0o600); err != nil {
		return err
	}
	said, err := run(ctx, fakeTime(created), "debugfs", "-w", "-f", commands, path)
	// debugfs exits with 0 whatever happens, and says its version before anything else.
	if _, complaint, ok := strings.Cut(said, "\n"); err == nil && ok {
		err = fmt.Errorf("setting times: debugfs: %.500s", complaint)
	}
	return errors.Join(err, os.Remove(commands))
}

// fakeTime stops the clock of e2fsprogs (its libext2fs reads this variable).
func fakeTime(t time.Time) []string {
	// Zero would mean the real time.
	return []string{"E2FSPROGS_FAKE_TIME=" + strconv.FormatInt(max(1, t.Unix()), 10)}
}
