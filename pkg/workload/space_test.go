package workload_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
)

// put writes content under a lease; what is not whole stays a partial download.
func put(t *testing.T, d *daemon.Daemon, space string, data []byte, whole bool) {
	t.Helper()
	client := d.Client(t)
	ctx := namespaces.WithNamespace(t.Context(), space)
	l, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	ctx = leases.WithLease(ctx, l.ID)
	if whole {
		if err := content.WriteBlob(ctx, client.ContentStore(), desc.Digest.String(), bytes.NewReader(data), desc); err != nil {
			t.Fatal(err)
		}
		return
	}
	w, err := content.OpenWriter(ctx, client.ContentStore(), content.WithRef(desc.Digest.String()), content.WithDescriptor(desc))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(data[:len(data)/2])
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
}

// layer makes a snapshot that holds so many bytes: committed, or a container's.
func layer(t *testing.T, d *daemon.Daemon, space string, size int, committed bool) {
	t.Helper()
	client := d.Client(t)
	ctx := namespaces.WithNamespace(t.Context(), space)
	l, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	ctx = leases.WithLease(ctx, l.ID)
	service := client.SnapshotService("overlayfs")
	mounts, err := service.Prepare(ctx, l.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mounts[0].Source, "file"), bytes.Repeat([]byte("x"), size), 0o600); err != nil {
		t.Fatal(err)
	}
	if committed {
		err = service.Commit(ctx, l.ID+"-done", l.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestSpace: osctl's own content, the others' once each, and their layers.
func TestSpace(t *testing.T) {
	d := daemon.Start(t)
	r := workload.New(d.Address, "own")
	put(t, d, "one", []byte("shared by both"), true)
	put(t, d, "two", []byte("shared by both"), true)
	put(t, d, "two", []byte("not"), true)
	put(t, d, "two", []byte("not whole"), false)
	put(t, d, "own", []byte("a pack"), true)
	put(t, d, "own", []byte("half of it"), false)
	layer(t, d, "one", 100<<10, true)
	layer(t, d, "two", 50<<10, true)
	layer(t, d, "two", 1<<20, false)
	got, err := r.Space(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A folder is a block as well.
	if layers := int64(150 << 10); got.Layers < layers || got.Layers > layers+16<<10 {
		t.Errorf("layers of %d bytes, want about %d", got.Layers, layers)
	}
	got.Layers = 0
	if diff := cmp.Diff(workload.Space{Artifacts: 6 + 5, Images: 14 + 3}, got); diff != "" {
		t.Errorf("space (-want +got):\n%s", diff)
	}
	d.Stop()
	if _, err := r.Space(t.Context()); err == nil {
		t.Error("a dead containerd holds something")
	}
}
