package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dialTimeout is how long a containerd that runs may take to answer.
const dialTimeout = 10 * time.Second

// leasePrefix marks osctl's leases, so that a stale one is recognised.
const leasePrefix = "osctl-upgrade-"

// Store keeps the packs: the daemon's content store, or a folder.
type Store struct {
	content   content.Store
	leases    leases.Manager // nil without a daemon: nothing collects there
	namespace string
	close     func() error
}

// Dial connects to the containerd daemon. Content goes into the given
// containerd namespace.
func Dial(ctx context.Context, address, namespace string) (*Store, error) {
	// The library waits for a socket that is not there; whether somebody listens
	// can be known at once.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrDaemon, address, err)
	}
	conn.Close() //nolint:errcheck // nothing was sent
	client, err := containerd.New(address, containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(dialTimeout))
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		if _, err = client.Version(ctx); err != nil {
			err = errors.Join(err, client.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrDaemon, address, err)
	}
	return &Store{content: client.ContentStore(), leases: client.LeasesService(), namespace: namespace, close: client.Close}, nil
}

// OpenStore opens a content store in a folder, without a daemon: the same
// library that the daemon uses.
func OpenStore(dir string) (*Store, error) {
	store, err := local.NewStore(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: opening %s: %w", ErrStore, dir, err)
	}
	return &Store{content: store, namespace: "osctl", close: func() error { return nil }}, nil
}

// Close ends the connection; content stays.
func (s *Store) Close() error { return s.close() }

// hold leases the content of this image: it is safe from the garbage collector
// until release, over restarts of osctl and of the machine. Leases of other
// images are let go: one upgrade is under way at a time.
func (s *Store) hold(ctx context.Context, image digest.Digest) (string, error) {
	if s.leases == nil {
		return "", nil
	}
	ctx = s.under(ctx, "")
	id := leasePrefix + image.Encoded()
	if err := s.drop(ctx, id); err != nil {
		return "", err
	}
	_, err := s.leases.Create(ctx, leases.WithID(id), leases.WithLabels(map[string]string{"osctl.digest": image.String()}))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return "", fmt.Errorf("%w: leasing content: %w", ErrStore, err)
	}
	return id, nil
}

// under returns a context for calls to the store, under a lease if one is named.
func (s *Store) under(ctx context.Context, lease string) context.Context {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	if lease != "" {
		ctx = leases.WithLease(ctx, lease)
	}
	return ctx
}

// release lets all of osctl's content go.
func (s *Store) release(ctx context.Context) error {
	if s.leases == nil {
		return nil
	}
	return s.drop(s.under(ctx, ""), "")
}

// Forget lets the packs of one image go, by the digest of its manifest: a slot holds it.
func (s *Store) Forget(ctx context.Context, image string) error {
	id, err := digest.Parse(image)
	if err != nil || s.leases == nil {
		return err
	}
	l := leases.Lease{ID: leasePrefix + id.Encoded()}
	if err := s.leases.Delete(s.under(ctx, ""), l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("%w: deleting lease %s: %w", ErrStore, l.ID, err)
	}
	return nil
}

// drop deletes osctl's leases but the one that is named.
func (s *Store) drop(ctx context.Context, keep string) error {
	list, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("%w: listing leases: %w", ErrStore, err)
	}
	for _, l := range list {
		if !strings.HasPrefix(l.ID, leasePrefix) || l.ID == keep {
			continue
		}
		if err := s.leases.Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("%w: deleting lease %s: %w", ErrStore, l.ID, err)
		}
	}
	return nil
}

// read opens a blob that the store holds.
func (s *Store) read(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ra, err := s.content.ReaderAt(s.under(ctx, ""), desc)
	if err != nil {
		return nil, fmt.Errorf("%w: reading %s: %w", ErrStore, desc.Digest, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, 0, ra.Size()), ra}, nil
}
