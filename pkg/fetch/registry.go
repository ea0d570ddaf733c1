package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/progress"
)

// attempts is how often one pack is tried; each attempt goes on where the last
// one stopped. With the pauses that is a minute of a registry's absence.
const attempts = 6

// Registry is a source behind a registry's API.
type Registry struct {
	store    *Store
	resolver remotes.Resolver
	pause    func(ctx context.Context, attempt int) error
}

// NewRegistry fetches through containerd's resolver. hostsDir is a certs.d
// folder of hosts.toml files, and need not exist.
func NewRegistry(ctx context.Context, store *Store, hostsDir string) *Registry {
	options := config.HostOptions{HostDir: config.HostDirFromRoot(hostsDir), Credentials: credentials, UpdateClient: limitClient}
	return &Registry{
		store: store, pause: backoff,
		resolver: docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, options)}),
	}
}

// limitClient bounds how long a registry may think about an answer.
func limitClient(client *http.Client) error {
	if t, ok := client.Transport.(*http.Transport); ok {
		t.ResponseHeaderTimeout = time.Minute
	}
	return nil
}

// credentials reads what "nerdctl login" and "docker login" wrote.
func credentials(host string) (string, string, error) {
	registry, err := name.NewRegistry(host)
	if err != nil {
		return "", "", nil // no registry by that tool's rules, so no login either
	}
	auth, err := authn.DefaultKeychain.Resolve(registry)
	if err != nil {
		return "", "", fmt.Errorf("reading the credentials for %s: %w", host, err)
	}
	c, err := auth.Authorization()
	if err != nil {
		return "", "", fmt.Errorf("reading the credentials for %s: %w", host, err)
	}
	if c.IdentityToken != "" {
		return "", c.IdentityToken, nil
	}
	return c.Username, c.Password, nil
}

// backoff waits 1, 2, 4, 8, 16 seconds.
func backoff(ctx context.Context, attempt int) error {
	timer := time.NewTimer(time.Second << attempt)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CheckReference fails with ErrReference for what is no reference with a tag or a
// digest. It asks nobody.
func CheckReference(name string) error {
	_, err := parseReference(name)
	return err
}

func parseReference(name string) (reference.Spec, error) {
	spec, err := reference.Parse(name)
	if err != nil || spec.Object == "" {
		return spec, fmt.Errorf("%w: %q: expected registry/repository:tag or registry/repository@sha256:…", ErrReference, name)
	}
	return spec, nil
}

// Resolve asks the registry what the name means now. name is a reference with
// a tag or a digest, or both.
func (r *Registry) Resolve(ctx context.Context, name string) (Ref, error) {
	spec, err := parseReference(name)
	if err != nil {
		return Ref{}, err
	}
	_, desc, err := r.resolver.Resolve(ctx, name)
	if err != nil {
		return Ref{}, fmt.Errorf("resolving %s: %w", name, explain(err))
	}
	if asked := spec.Digest(); asked != "" && asked != desc.Digest {
		return Ref{}, fmt.Errorf("resolving %s: %w: the registry answered with %s", name, ErrRegistry, desc.Digest)
	}
	fetcher, err := r.resolver.Fetcher(ctx, name)
	if err != nil {
		return Ref{}, fmt.Errorf("%w: %q: %w", ErrReference, name, err)
	}
	return Ref{name: name, desc: desc, source: repository{r, spec.Locator, fetcher}}, nil
}

// explain turns the library's errors into what a person can act on.
func explain(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, osimage.ErrInvalid):
		return err
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w: %w: it has no such tag, digest or repository", ErrRegistry, ErrNotFound)
	case errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden),
		errors.Is(err, docker.ErrInvalidAuthorization), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return fmt.Errorf("%w: %w (nerdctl login stores credentials): %w", ErrRegistry, ErrDenied, err)
	case errors.Is(err, unix.ENOSPC), strings.Contains(err.Error(), unix.ENOSPC.Error()):
		// Over gRPC only the text of the daemon's error arrives.
		return fmt.Errorf("%w: its file system is full: %w", ErrStore, err)
	case errdefs.IsUnavailable(err) && !errors.As(err, &status):
		return fmt.Errorf("%w: %w", ErrDaemon, err)
	}
	return fmt.Errorf("%w: %w", ErrRegistry, err)
}

// repository is a source at a registry.
type repository struct {
	*Registry
	locator string // registry/repository
	fetcher remotes.Fetcher
}

func (r repository) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := r.fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, explain(err)
	}
	return explained{rc}, nil
}

// explained adds the class to errors that show only when a body is read.
type explained struct{ io.ReadCloser }

func (e explained) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = explain(err)
	}
	return n, err
}

// signatures looks at cosign's tag, with the same credentials as the pull.
func (r repository) signatures(ctx context.Context, image digest.Digest) ([]ocispec.Descriptor, error) {
	_, desc, err := r.resolver.Resolve(ctx, r.locator+":"+osimage.SignatureTag(image))
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, explain(err)
	}
	return []ocispec.Descriptor{desc}, nil
}

func (r repository) blobs(ctx context.Context, image digest.Digest, sink progress.Sink) (osimage.Blobs, error) {
	lease, err := r.store.hold(ctx, image)
	if err != nil {
		return nil, err
	}
	return &blobs{repository: r, lease: lease, sink: sink, count: func(int64) {}}, nil
}

func (r repository) release(ctx context.Context) error { return r.store.release(ctx) }

// blobs are the packs of one image, under a lease.
type blobs struct {
	repository
	lease string
	sink  progress.Sink
	count func(int64)
}

// Expect starts the count for the progress display.
func (b *blobs) Expect(total int64) {
	b.count = progress.NewCounter(b.sink, progress.Fetch, total).Add
}

// Open makes sure that the content store holds the pack, fetching what it lacks,
// and opens it there. It may be called by several goroutines.
func (b *blobs) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	desc = plain(desc)
	if err := b.ensure(ctx, desc); err != nil {
		return nil, fmt.Errorf("fetching pack %s: %w", desc.Digest, err)
	}
	return b.store.read(ctx, desc)
}

// ensure fetches with retries. A registry's "no" is final, a broken connection
// and a busy server are not.
func (b *blobs) ensure(ctx context.Context, desc ocispec.Descriptor) error {
	var last error
	for attempt := range attempts {
		if attempt > 0 {
			if err := b.pause(ctx, attempt-1); err != nil {
				return errors.Join(err, last)
			}
		}
		err := b.fetchOnce(ctx, desc)
		if err == nil {
			return nil
		}
		last = explain(err)
		// The context's end also looks like an absent daemon.
		if final(last) || ctx.Err() != nil {
			break
		}
	}
	return last
}

func final(err error) bool {
	return errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrStore) ||
		errors.Is(err, ErrDaemon) || errors.Is(err, errDigest)
}

// errDigest says that a complete pack has the wrong content: fetching it again
// from the same place gives the same.
var errDigest = errors.New("the content has another digest")

func (b *blobs) fetchOnce(ctx context.Context, desc ocispec.Descriptor) error {
	ctx, cancel := context.WithCancel(b.store.under(ctx, b.lease))
	defer cancel()
	w, err := content.OpenWriter(ctx, b.store.content, content.WithRef(ingest(desc)), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		b.count(desc.Size)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	defer w.Close() //nolint:errcheck // the commit is what counts
	status, err := w.Status()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	if status.Offset < desc.Size {
		err := b.copy(ctx, w, desc, status.Offset, cancel)
		if refusedRange(err) {
			// This registry cannot continue; the next attempt starts at the beginning.
			return errors.Join(err, w.Close(), b.store.content.Abort(ctx, ingest(desc)))
		}
		if err != nil {
			return err
		}
	} else {
		b.count(status.Offset)
	}
	err = w.Commit(ctx, desc.Size, desc.Digest)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if errdefs.IsFailedPrecondition(err) {
		// What is there is wrong as a whole; nothing of it may be built upon.
		return errors.Join(fmt.Errorf("%w: %w", errDigest, err), b.store.content.Abort(ctx, ingest(desc)))
	}
	return err
}

// ingest is the name of a partial download in the content store.
func ingest(desc ocispec.Descriptor) string { return "osctl-" + desc.Digest.String() }

func refusedRange(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	return errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// copy appends what is missing of the pack to its partial download.
func (b *blobs) copy(ctx context.Context, w content.Writer, desc ocispec.Descriptor, offset int64, cancel func()) error {
	rc, err := b.fetcher.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer rc.Close() //nolint:errcheck // read only
	if offset > 0 {
		seeker, ok := rc.(io.Seeker)
		if !ok {
			return fmt.Errorf("%w: cannot continue a download", ErrRegistry)
		}
		if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
			return err
		}
		b.count(offset)
	}
	watched := watch(progress.Reader(rc, b.count), stall, cancel)
	defer watched.stop()
	// Each write is a round trip to containerd, and each of the packs that are
	// fetched at a time has such a buffer.
	buf := make([]byte, 512<<10)
	n, err := io.CopyBuffer(onlyWriter{w}, io.LimitReader(watched, desc.Size-offset), buf)
	if err == nil && n < desc.Size-offset {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		// The bytes are counted again by the next attempt.
		b.count(-(offset + n))
		return watched.explain(err)
	}
	return nil
}

// onlyWriter hides the writer's other methods from io.Copy.
type onlyWriter struct{ io.Writer }
