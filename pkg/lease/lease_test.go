package lease_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/lease"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/nerdctl"
)

// rig is a real containerd with nerdctl, and what is asked of both.
type rig struct {
	*nerdctl.Rig
	t      *testing.T
	ctx    context.Context // of the workloads' namespace
	client *containerd.Client
	keeper lease.Keeper
	log    bytes.Buffer
}

func newRig(t *testing.T) *rig {
	r := &rig{Rig: nerdctl.Start(t), t: t}
	r.ctx, r.client = namespaces.WithNamespace(t.Context(), r.Namespace), r.Client(t)
	r.keeper = lease.Keeper{Address: r.Address, Own: "own", Log: slog.New(slog.NewTextHandler(&r.log, nil))}
	return r
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// keep holds for a slot what runs now, as the machine lists it.
func (r *rig) keep(slot device.Slot) {
	r.t.Helper()
	list, err := workload.New(r.Address, "own").List(r.t.Context())
	r.ok(err)
	r.ok(r.keeper.Keep(r.t.Context(), slot, list))
}

// pulled brings an image with a text.
func (r *rig) pulled(name, text string) (ref, digest string) {
	r.t.Helper()
	ref, digest = r.Push(name, text)
	r.Run("pull", "-q", ref)
	return ref, digest
}

// start runs an image as a workload, without a restart policy: the monitor looks every
// second here, and takes what is only being made for what has died.
func (r *rig) start(name, ref string) {
	r.t.Helper()
	r.Run("run", "-d", "--name", name, "--net", "none", ref, "wait")
}

// prune removes all containers, all images without one, and collects at once.
func (r *rig) prune(names ...string) {
	r.t.Helper()
	for _, name := range names {
		r.Run("rm", "-f", name)
	}
	r.Run("image", "prune", "-a", "-f")
	r.collect()
}

// collect has containerd collect garbage: it answers when that is done.
func (r *rig) collect() {
	r.t.Helper()
	l, err := r.client.LeasesService().Create(r.ctx, leases.WithID("collect"))
	r.ok(err)
	r.ok(r.client.LeasesService().Delete(r.ctx, l, leases.SynchronousDelete))
}

// stock counts what containerd has of images in the workloads' namespace.
func (r *rig) stock() (blobs, layers int) {
	r.t.Helper()
	r.ok(r.client.ContentStore().Walk(r.ctx, func(content.Info) error { blobs++; return nil }))
	r.ok(r.client.SnapshotService("overlayfs").Walk(r.ctx, func(context.Context, snapshots.Info) error { layers++; return nil }))
	return blobs, layers
}

func (r *rig) stocked(when string, blobs, layers int) {
	r.t.Helper()
	if b, l := r.stock(); b != blobs || l != layers {
		r.t.Errorf("%s: containerd has %d blobs and %d snapshots, want %d and %d", when, b, l, blobs, layers)
	}
}

// held are the leases of slots: the slot, and each image's digest.
func (r *rig) held() []string {
	r.t.Helper()
	list, err := r.client.LeasesService().List(r.ctx)
	r.ok(err)
	all := []string{}
	for _, l := range list {
		resources, err := r.client.LeasesService().ListResources(r.ctx, l)
		r.ok(err)
		for _, of := range resources {
			all = append(all, l.Labels["osctl.slot"]+" "+of.ID)
		}
		if _, expires := l.Labels["containerd.io/gc.expire"]; expires {
			r.t.Errorf("lease %s expires", l.ID)
		}
	}
	slices.Sort(all)
	return all
}

func (r *rig) holds(when string, want ...string) {
	r.t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(append([]string{}, want...), r.held()); diff != "" {
		r.t.Errorf("%s: held (-want +got):\n%s", when, diff)
	}
}

// is runs an image as a person would, without a network, and holds which one it is.
func (r *rig) is(ref, text string) {
	r.t.Helper()
	if _, err := r.Try("run", "--rm", "--net", "none", ref, "is", text); err != nil {
		r.t.Errorf("%s is not %q: %v", ref, text, err)
	}
}

// An image of two layers is a manifest, a config and two blobs, and two snapshots.
const (
	blobsOfOne  = 4
	layersOfOne = 2
)

// TestPrunedImageComesBack is a rollback without a network: the container was removed and
// everything was pruned, and the image runs again under its name.
func TestPrunedImageComesBack(t *testing.T) {
	r := newRig(t)
	ref, digest := r.pulled("app:1", "one")
	other, _ := r.pulled("tool:1", "tool")
	r.start("web", ref)
	r.Run("run", "--name", "once", "--net", "none", other, "is", "tool")
	r.keep(device.SlotA)
	r.holds("committed", "A "+digest)
	r.CloseRegistry()

	r.prune("web", "once")
	r.stocked("pruned", blobsOfOne, layersOfOne)
	if _, err := r.Try("run", "--rm", "--net", "none", ref, "is", "one"); err == nil {
		t.Error("a name that was pruned leads somewhere")
	}
	r.ok(r.keeper.Restore(t.Context(), device.SlotB)) // nothing was held for it
	if list := r.Run("images", "-q"); list != "" {
		t.Errorf("images of another slot came back: %s", list)
	}
	r.ok(r.keeper.Restore(t.Context(), device.SlotA))
	r.ok(r.keeper.Restore(t.Context(), device.SlotA))
	r.is(ref, "one")
	if list := strings.Fields(r.Run("images", "-q", "--no-trunc")); !slices.Equal(list, []string{digest}) {
		t.Errorf("images %v, want one, %s", list, digest)
	}

	// What no slot needs any more goes.
	r.ok(r.keeper.Drop(t.Context(), device.SlotA))
	r.prune()
	r.stocked("dropped", 0, 0)
}

// TestMovedNameStays: a tag that was pulled anew is somebody's wish. What it led to gets
// a name of its own.
func TestMovedNameStays(t *testing.T) {
	r := newRig(t)
	ref, first := r.pulled("app:latest", "first")
	r.start("web", ref)
	r.keep(device.SlotA)
	r.Run("rm", "-f", "web")
	_, second := r.pulled("app:latest", "second")
	r.start("web", ref)
	r.CloseRegistry()
	r.collect()
	r.ok(r.keeper.Restore(t.Context(), device.SlotA))
	r.is(ref, "second")
	r.is(strings.TrimSuffix(ref, ":latest")+"@"+first, "first")

	// The new slot's commit does not take from the old one.
	r.keep(device.SlotB)
	r.holds("committed in B", "A "+first, "B "+second)
}

// TestReplaced: what a slot's workloads use now takes the place of what they used, and of
// nothing else.
func TestReplaced(t *testing.T) {
	r := newRig(t)
	one, first := r.pulled("app:1", "one")
	two, second := r.pulled("app:2", "two")
	runs := func(refs ...string) (list []health.Container) {
		for i, ref := range refs {
			list = append(list, health.Container{Workload: health.Workload{Namespace: r.Namespace, ID: fmt.Sprint(i), Image: ref}, Status: health.Running})
		}
		return list
	}
	keep := func(slot device.Slot, list []health.Container) {
		t.Helper()
		r.ok(r.keeper.Keep(t.Context(), slot, list))
	}
	keep(device.SlotA, runs(one, one))
	keep(device.SlotB, runs(two, one))
	r.holds("both", "A "+first, "B "+first, "B "+second)
	keep(device.SlotA, runs(two))
	keep(device.SlotA, runs(two))
	r.holds("A has moved on", "A "+second, "B "+first, "B "+second)

	// Stopped for good and without an image there is nothing to hold; what containerd
	// starts again by itself counts, whether it runs now or not.
	idle := runs(one, two, "", "gone.example.com/x:1")
	idle[0].Status, idle[1].Status, idle[1].Restart = "stopped", "stopped", "always"
	keep(device.SlotB, idle)
	r.holds("B has less", "A "+second, "B "+second)
	if !strings.Contains(r.log.String(), "gone.example.com/x:1") {
		t.Errorf("nobody is told of an image that is gone: %s", r.log.String())
	}

	// A name that is gone, of a container that still runs: what was held stays held, by
	// whichever slot's lease.
	r.Run("rmi", "-f", two)
	keep(device.SlotB, runs(two))
	keep(device.SlotA, nil)
	r.holds("its name is gone", "B "+second)
	keep(device.SlotA, runs(two))
	r.holds("from the other slot", "A "+second, "B "+second)
	keep(device.SlotA, nil)
	keep(device.SlotB, nil)
	r.holds("nothing runs")
	r.prune()
	r.stocked("pruned", 0, 0)
}

// TestCuts: the machine may lose its power between any two steps. Doing it again ends
// with the lease that is wanted and no other.
func TestCuts(t *testing.T) {
	r := newRig(t)
	one, first := r.pulled("app:1", "one")
	_, second := r.pulled("app:2", "two")
	list := []health.Container{{Workload: health.Workload{Namespace: r.Namespace, ID: "1", Image: one}, Status: health.Running}}
	r.ok(r.keeper.Keep(t.Context(), device.SlotA, list))
	manager := r.client.LeasesService()
	all, err := manager.List(r.ctx)
	if err != nil || len(all) != 1 {
		t.Fatalf("leases %v, %v", all, err)
	}
	// It was made and not filled, and the one before it is still there.
	r.ok(manager.DeleteResource(r.ctx, all[0], leases.Resource{ID: first, Type: "content"}))
	old, err := manager.Create(r.ctx, leases.WithID("osctl-slot-A-0"), leases.WithLabels(map[string]string{"osctl.slot": "A"}))
	r.ok(err)
	r.ok(manager.AddResource(r.ctx, old, leases.Resource{ID: second, Type: "content"}))
	r.holds("cut", "A "+second)
	r.ok(r.keeper.Keep(t.Context(), device.SlotA, list))
	r.holds("again", "A "+first)
}

// TestSpaces: each namespace has its own images and so its own lease; osctl's has none.
func TestSpaces(t *testing.T) {
	r := newRig(t)
	ref, digest := r.pulled("app:1", "one")
	own := r.Namespace
	r.Namespace = "own"
	r.Run("pull", "-q", ref)
	r.Namespace = own
	var list []health.Container
	for _, space := range []string{own, "own"} {
		list = append(list, health.Container{Workload: health.Workload{Namespace: space, ID: "1", Image: ref}, Status: health.Running})
	}
	r.ok(r.keeper.Keep(t.Context(), device.SlotA, list))
	r.holds("the workloads' namespace", "A "+digest)
	found, err := r.client.LeasesService().List(namespaces.WithNamespace(t.Context(), "own"))
	if err != nil || len(found) != 0 {
		t.Errorf("osctl's own namespace has %v, %v", found, err)
	}
}

// TestNoAnswer: a containerd that is not there or says nothing is an error, and in time.
func TestNoAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing to lose
	for name, tt := range map[string]struct {
		path string
		want error
	}{
		"no socket": {path + ".none", syscall.ENOENT},
		"silent":    {path, lease.ErrHold},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		k := lease.Keeper{Address: tt.path, Own: "own", Log: slog.New(slog.DiscardHandler)}
		for what, err := range map[string]error{
			"keep": k.Keep(ctx, device.SlotA, nil), "drop": k.Drop(ctx, device.SlotA), "restore": k.Restore(ctx, device.SlotA),
		} {
			if !errors.Is(err, tt.want) || !errors.Is(err, lease.ErrHold) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		cancel()
	}
}
