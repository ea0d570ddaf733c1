package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/test/need"
)

// mixed DIR ONE TWO makes a layout with the config of ONE and the packs of TWO,
// validly signed: what a publisher's broken builder would make.
func mixed(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	dir := ts.MkAbs(args[0])
	for _, from := range args[1:] {
		ts.Check(copyMissing(filepath.Join(dir, "blobs/sha256"), filepath.Join(ts.MkAbs(from), "blobs/sha256")))
	}
	one, two := manifestOf(ts, ts.MkAbs(args[1])), manifestOf(ts, ts.MkAbs(args[2]))
	raw, desc, err := osimage.Manifest(one.Config, two.Layers, nil)
	ts.Check(err)
	index, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc}})
	ts.Check(err)
	for file, data := range map[string][]byte{
		"blobs/sha256/" + desc.Digest.Encoded(): raw, "index.json": index, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
	} {
		ts.Check(os.WriteFile(filepath.Join(dir, file), data, 0o600))
	}
	_, err = publish.Sign(s.Context(), dir, s.release.key, publish.Options{})
	ts.Check(err)
}

// copyMissing copies the files of a folder that another one lacks.
func copyMissing(to, from string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// manifestOf reads the manifest of the only OS image of a layout.
func manifestOf(ts *testscript.TestScript, dir string) ocispec.Manifest {
	var m ocispec.Manifest
	raw, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", digest.Digest(layoutDigest(of(ts), dir)).Encoded()))
	ts.Check(err)
	ts.Check(json.Unmarshal(raw, &m))
	return m
}

// foreign REF container|index|helm pushes what is no OS artifact.
func foreign(ts *testscript.TestScript, neg bool, args []string) {
	ref, err := name.ParseReference(args[0])
	ts.Check(err)
	var img v1.Image
	switch args[1] {
	case "container":
		img, err = random.Image(1000, 1)
	case "index":
		index, failed := random.Index(1000, 1, 2)
		ts.Check(failed)
		ts.Check(remote.WriteIndex(ref, index))
		return
	case "helm":
		img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, ocispec.MediaTypeImageManifest), "application/vnd.cncf.helm.config.v1+json")
	default:
		ts.Fatalf("usage: foreign REF container|index|helm")
	}
	ts.Check(err)
	ts.Check(remote.Write(ref, img))
}

// stalled waits until the registry holds a request back.
func stalled(ts *testscript.TestScript, neg bool, _ []string) {
	s := of(ts)
	select {
	case <-s.front.stalled:
	case <-s.Context().Done():
		ts.Fatalf("nothing was held back")
	}
}

// ctr runs containerd's own client in the namespace of the script's osctl.
func (s *script) ctr(args ...string) ([]string, error) {
	cmd := exec.Command(need.Tool(s, "ctr"), append([]string{"--address", s.containerd, "--namespace", s.namespace}, args...)...)
	out, err := cmd.Output()
	return strings.Fields(string(out)), err
}

// finished DIR store|slot remembers the packs of an image that the machine has whole,
// of those that were asked for: some in that place, not all, and with the slot the
// first one too, which is in the store. "! finished" holds that none of those was
// asked for again since the last "front", and no other pack twice.
func finished(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg {
		most, again := s.front.repeated(s.finished)
		if most == 0 || most > 1 || len(again) > 0 {
			ts.Fatalf("packs were asked for up to %d times, of the finished ones %v", most, again)
		}
		return
	}
	kept, err := s.ctr("content", "ls", "-q")
	ts.Check(err)
	m := manifestOf(ts, ts.MkAbs(args[0]))
	there := 0
	s.finished = nil
	for n, written := range s.written(ts, ts.MkAbs(args[0]), m) {
		d := m.Layers[n].Digest.String()
		if !s.front.wasAsked(d) || !written && !slices.Contains(kept, d) {
			continue
		}
		s.finished = append(s.finished, d)
		if written == (args[1] == "slot") {
			there++
		}
	}
	first := args[1] == "store" || slices.Contains(s.finished, m.Layers[0].Digest.String())
	if !first || there == 0 || len(s.finished) == len(m.Layers) {
		ts.Fatalf("%d of %d packs are complete, %d in the %s, the first one: %t", len(s.finished), len(m.Layers), there, args[1], first)
	}
}

// written says for each pack of an image whether slot B holds all its segments.
func (s *script) written(ts *testscript.TestScript, dir string, m ocispec.Manifest) []bool {
	var config osimage.Config
	text, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", m.Config.Digest.Encoded()))
	ts.Check(err)
	ts.Check(json.Unmarshal(text, &config))
	have, err := os.ReadFile(ts.MkAbs("B.img"))
	ts.Check(err)
	want := s.images[filepath.Base(dir)].Raw()
	var packs []bool
	from := 0
	for _, count := range config.Rootfs.PackSegments {
		to := min(from+count*osimage.SegmentSize, len(want))
		packs = append(packs, bytes.Equal(have[from:to], want[from:to]))
		from = to
	}
	return packs
}

// leftover holds that containerd has content or leases of
// osctl; "! leftover" that it has none of them.
func leftover(ts *testscript.TestScript, neg bool, _ []string) {
	s := of(ts)
	var all []string
	for _, args := range [][]string{{"content", "ls", "-q"}, {"leases", "ls", "-q"}} {
		list, err := s.ctr(args...)
		ts.Check(err)
		all = append(all, list...)
	}
	if (len(all) > 0) == neg {
		ts.Fatalf("containerd has %v", all)
	}
}

// collect lets containerd collect its garbage, and waits for it: what no lease and no
// image holds is gone, and the lease that is deleted for it held nothing.
func collect(ts *testscript.TestScript, neg bool, _ []string) {
	s := of(ts)
	if neg {
		ts.Fatalf("unsupported: ! collect")
	}
	for _, args := range [][]string{{"leases", "create", "--id", "collect"}, {"leases", "delete", "--sync", "collect"}} {
		_, err := s.ctr(args...)
		ts.Check(err)
	}
}

// tmpfs DIR SIZE mounts a file system of that size until the script ends.
func tmpfs(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { ts.Check(unix.Unmount(dir, 0)) })
}

// loop NAME FILE attaches a file to a free loop device, sets NAME to its path
// and detaches it when the script ends.
func loop(ts *testscript.TestScript, neg bool, args []string) {
	out, err := exec.Command("losetup", "--find", "--show", ts.MkAbs(args[1])).Output()
	ts.Check(err)
	device := strings.TrimSpace(string(out))
	ts.Setenv(args[0], device)
	ts.Defer(func() { ts.Check(exec.Command("losetup", "--detach", device).Run()) })
}

// mounted DEVICE DIR mounts a device until "! mounted DIR" or the script's end.
func mounted(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Check(unix.Unmount(ts.MkAbs(args[0]), 0))
		return
	}
	dir := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount(args[0], dir, "ext4", unix.MS_RDONLY, ""))
	ts.Defer(func() { _ = unix.Unmount(dir, 0) })
}
