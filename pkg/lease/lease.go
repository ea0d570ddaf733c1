// Package lease holds, for each slot, the images that the slot's workloads ran with, so
// that nothing that prunes (nerdctl image prune -a, rmi, a tag that is pulled anew) takes
// away what a rollback needs.
//
// A slot has one lease in each of containerd's namespaces in which something runs. The
// lease stands in for the images' names: from the same digest containerd's own labels
// lead to manifest, config, layers and unpacked snapshots. What was held under which name
// is in the lease's labels, so that a name can be given back.
//
// The package refuses to decide when: package upgrade does. It starts, stops and pulls
// nothing, moves no name that leads somewhere, and takes away nothing but its own leases.
//
// It promises to come back within ten seconds, that a lease does not expire, and that
// what was held before stays held until all of the new is: a power cut in between leaves
// too much, which the next call takes away.
package lease

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
)

// limit is how long one call may take.
const limit = 10 * time.Second

// What a lease says of itself. Each image is one label: imageLabel and a number, with
// the digest, the size and the media type of what the name led to, and the name.
const (
	prefix     = "osctl-slot-"
	slotLabel  = "osctl.slot"
	imageLabel = "osctl.image."
)

// ErrHold says that images could not be held for a slot, or given back to it.
var ErrHold = errors.New("the images of the workloads")

// Keeper keeps the leases of slots. It holds no connection between calls.
type Keeper struct {
	// Address is the path of containerd's gRPC socket.
	Address string
	// Own is osctl's own namespace, in which nothing is a workload.
	Own string
	// Log is told what could not be held and which names were given back.
	Log *slog.Logger
}

// Keep replaces what is held for a slot by the images of these containers: of those that
// run, and of those that containerd starts again by itself. Of an image whose name is gone
// it keeps what was held of it.
func (k Keeper) Keep(ctx context.Context, slot device.Slot, containers []health.Container) error {
	err := k.each(ctx, func(s *space) error {
		var wanted []image
		for _, name := range used(s.name, containers) {
			img, err := s.find(name, slot)
			if errors.Is(err, errGone) {
				k.Log.Warn("an image cannot be held for a rollback", "slot", slot, "namespace", s.name, "image", name, "reason", err)
				continue
			}
			if err != nil {
				return err
			}
			wanted = append(wanted, img)
		}
		return s.replace(slot, wanted)
	})
	if err != nil {
		return fmt.Errorf("holding for slot %s: %w: %w", slot, ErrHold, err)
	}
	return nil
}

// Drop lets go what is held for a slot, because the slot will hold another system.
func (k Keeper) Drop(ctx context.Context, slot device.Slot) error {
	err := k.each(ctx, func(s *space) error { return s.replace(slot, nil) })
	if err != nil {
		return fmt.Errorf("letting go what is held for slot %s: %w: %w", slot, ErrHold, err)
	}
	return nil
}

// used are the names of the images that a namespace's workloads use, sorted.
func used(namespace string, containers []health.Container) []string {
	var names []string
	for _, c := range containers {
		if c.Namespace == namespace && c.Image != "" && (c.Status == health.Running || c.Restart != "") {
			names = append(names, c.Image)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// space is one of containerd's namespaces, and the leases of all slots in it.
type space struct {
	name   string
	ctx    context.Context // of the namespace; it ends with the call
	client *containerd.Client
	leases []leases.Lease
	log    *slog.Logger
}

// each does something in every namespace but osctl's own. One that fails does not keep
// it from the others.
func (k Keeper) each(ctx context.Context, do func(*space) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client, err := k.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	spaces, err := client.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("listing containerd's namespaces: %w", err)
	}
	var all []error
	for _, name := range spaces {
		if name == k.Own {
			continue
		}
		s := &space{name: name, ctx: namespaces.WithNamespace(ctx, name), client: client, log: k.Log}
		err := s.load()
		if err == nil {
			err = do(s)
		}
		if err != nil {
			all = append(all, fmt.Errorf("namespace %s: %w", name, err))
		}
	}
	return errors.Join(all...)
}

// dial connects, at once or never: containerd's own dialer waits for a socket that is
// not there.
func (k Keeper) dial(ctx context.Context) (*containerd.Client, error) {
	connect := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", k.Address)
	}
	probe, err := connect(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd: %w", err)
	}
	probe.Close() //nolint:errcheck // nothing was sent
	client, err := containerd.New(k.Address, containerd.WithExtraDialOpts([]grpc.DialOption{grpc.WithContextDialer(connect)}))
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd at %s: %w", k.Address, err)
	}
	return client, nil
}

// load reads the leases of slots in the namespace.
func (s *space) load() error {
	list, err := s.client.LeasesService().List(s.ctx)
	if err != nil {
		return fmt.Errorf("listing leases: %w", err)
	}
	for _, l := range list {
		if strings.HasPrefix(l.ID, prefix) && l.Labels[slotLabel] != "" {
			s.leases = append(s.leases, l)
		}
	}
	return nil
}

// held are the images that are held in the namespace: for one slot, or for all.
func (s *space) held(slot device.Slot) []image {
	var list []image
	for _, l := range s.leases {
		if slot == "" || l.Labels[slotLabel] == string(slot) {
			list = append(list, imagesOf(l)...)
		}
	}
	return list
}

// replace makes a lease of these images and then takes away all others of the slot. Its
// name is made of what it holds, so that doing it again finds it, and one that a power
// cut left half filled is filled.
func (s *space) replace(slot device.Slot, images []image) error {
	manager := s.client.LeasesService()
	keep := ""
	if len(images) > 0 {
		l := newLease(slot, images)
		keep = l.ID
		if _, err := manager.Create(s.ctx, leases.WithID(l.ID), leases.WithLabels(l.Labels)); err != nil && !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("making a lease: %w", err)
		}
		for _, img := range images {
			if err := s.hold(l, img); err != nil {
				return err
			}
		}
	}
	for _, l := range s.leases {
		if l.ID == keep || l.Labels[slotLabel] != string(slot) {
			continue
		}
		if err := manager.Delete(s.ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("deleting lease %s: %w", l.ID, err)
		}
	}
	return nil
}

// hold puts an image under a lease, and looks whether it was there to be held: what is
// under a lease is not collected any more.
func (s *space) hold(l leases.Lease, img image) error {
	digest := img.target.Digest.String()
	if err := s.client.LeasesService().AddResource(s.ctx, l, leases.Resource{ID: digest, Type: "content"}); err != nil {
		return fmt.Errorf("holding image %s: %w", img.name, err)
	}
	if err := s.there(img); err != nil {
		s.log.Warn("an image cannot be held for a rollback", "slot", l.Labels[slotLabel], "namespace", s.name, "image", img.name, "reason", err)
	}
	return nil
}

// newLease is the lease of a slot over these images.
func newLease(slot device.Slot, images []image) leases.Lease {
	l := leases.Lease{Labels: map[string]string{slotLabel: string(slot)}}
	all := sha256.New()
	for i, img := range images {
		text := img.label()
		l.Labels[imageLabel+strconv.Itoa(i)] = text
		fmt.Fprintln(all, text)
	}
	l.ID = prefix + string(slot) + "-" + hex.EncodeToString(all.Sum(nil)[:8])
	return l
}
