package writelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sector(words ...uint64) []byte {
	p := make([]byte, SectorSize)
	for i, w := range words {
		binary.LittleEndian.PutUint64(p[i*8:], w)
	}
	return p
}

func write(t *testing.T, parts ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	two := bytes.Repeat([]byte("12"), SectorSize)
	path := write(t,
		sector(magic, version, 3, SectorSize),
		sector(7, 2, 0), two,
		sector(0, 0, flagFlush),
		sector(9, 1, flagDiscard),
		sector(1, 1, 0), two[:SectorSize], // after the last flush: not counted
	)
	var got []Entry
	err := Read(path, func(e Entry) error {
		e.Data = bytes.Clone(e.Data)
		got = append(got, e)
		return nil
	})
	want := []Entry{
		{Offset: 7 * SectorSize, Data: two}, {Flush: true}, {Offset: 9 * SectorSize, Data: make([]byte, SectorSize)},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Read: %v %s", err, diff)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, parts := range map[string][][]byte{
		"an empty file":       nil,
		"another file":        {bytes.Repeat([]byte("x"), 4096)},
		"another sector size": {sector(magic, version, 1, 4096)},
		"a cut entry":         {sector(magic, version, 2, SectorSize), sector(7, 2, 0), make([]byte, SectorSize)},
		"unknown flags":       {sector(magic, version, 1, SectorSize), sector(7, 0, 64)},
		"a huge entry":        {sector(magic, version, 1, SectorSize), sector(7, 1<<40, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Read(write(t, parts...), func(Entry) error { return nil }); !errors.Is(err, ErrFormat) {
				t.Errorf("error = %v", err)
			}
		})
	}
}
