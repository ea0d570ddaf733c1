package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
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
)

// attempts is how often one pack is tried; each attempt goes on where the last
// one stopped. With the pauses that is a minute of a registry's absence.
const attempts = 6

// Registry is a source behind a registry's API.
type Registry struct {
	store    *Store
	wire     *wire
	resolver remotes.Resolver
	tags     remotes.Resolver // asks only hosts that may say what a tag means
	pause    func(ctx context.Context, attempt int) error
}

// NewRegistry fetches through containerd's resolver. hostsDir is a certs.d
// folder of hosts.toml files, and need not exist.
func NewRegistry(ctx context.Context, store *Store, hostsDir string) *Registry {
	w := newWire()
	options := config.HostOptions{
		HostDir: config.HostDirFromRoot(hostsDir), UpdateClient: w.limitClient,
		Credentials: func(host string) (string, string, error) {
			user, secret, err := credentials(host)
			w.keepSecret(secret)
			return user, secret, err
		},
	}
	hosts := w.hosts(config.ConfigureHosts(ctx, options))
	return &Registry{
		store: store, wire: w, pause: backoff,
		resolver: docker.NewResolver(docker.ResolverOptions{Hosts: hosts}),
		tags:     docker.NewResolver(docker.ResolverOptions{Hosts: resolving(hosts)}),
	}
}

// resolving leaves of the hosts of a registry those that may say what a tag means: to a
// mirror that may not, only digests are given.
func resolving(hosts docker.RegistryHosts) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		list, err := hosts(name)
		return slices.DeleteFunc(list, func(h docker.RegistryHost) bool { return !h.Capabilities.Has(docker.HostCapabilityResolve) }), err
	}
}

// SetTime says which time certificates are judged at; without it that is the
// machine's clock. It is called before the first request.
func (r *Registry) SetTime(now func() time.Time) *Registry {
	r.wire.present = now
	return r
}

// limitClient bounds how long a registry may think about an answer, and the size
// of its headers, and gives TLS the time. The guard bounds the rest.
func (w *wire) limitClient(client *http.Client) error {
	if t, ok := client.Transport.(*http.Transport); ok {
		t.ResponseHeaderTimeout = time.Minute
		t.MaxResponseHeaderBytes = 1 << 20
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{}
		}
		t.TLSClientConfig.Time = w.present
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
	return sleep(ctx, time.Second<<attempt)
}

// CheckReference fails with ErrReference for what is no reference with a tag or a
// digest. It asks nobody. What it accepts is what is fetched, letter by letter: there
// is no second way to write a repository, by which one rule of a policy would be asked
// about what another one is for.
func CheckReference(name string) error {
	_, err := parseReference(name)
	return err
}

// written is a reference as the distribution specification has its parts: a host
// (a name, an IPv4 or IPv6 address) with or without a port, a path, a tag, a digest.
var written = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(:[0-9]+)?` +
	`(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$`)

func parseReference(name string) (reference.Spec, error) {
	spec, err := reference.Parse(name)
	// The library also takes names with users, queries, escapes and "..", and asks for
	// what is left of them.
	if err != nil || spec.Object == "" || !written.MatchString(name) || spec.String() != name {
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
		return Ref{}, fmt.Errorf("resolving %s: %w", name, r.explain(err))
	}
	if asked := spec.Digest(); asked != "" && asked != desc.Digest {
		return Ref{}, fmt.Errorf("resolving %s: %w: the registry answered with %s", name, ErrRegistry, desc.Digest)
	}
	return Ref{name: name, desc: asManifest(desc), source: repository{r, spec}}, nil
}

// asManifest makes sure that what a name leads to is asked for as a manifest,
// whatever Content-Type the registry gave it: its content says what it is.
func asManifest(desc ocispec.Descriptor) ocispec.Descriptor {
	if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
		desc.MediaType = ocispec.MediaTypeImageManifest
	}
	return desc
}

// explain turns an error of the library into what a person can act on and may be
// shown.
func (r *Registry) explain(err error) error { return r.wire.scrub(explain(err)) }

// explain gives an error of the library its class.
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
	case errors.As(err, &status):
		// What a registry says must not pass for an error of this machine.
	case errors.Is(err, unix.ENOSPC), strings.Contains(err.Error(), unix.ENOSPC.Error()):
		// Over gRPC only the text of the daemon's error arrives.
		return fmt.Errorf("%w: its file system is full: %w", ErrStore, err)
	case errdefs.IsUnavailable(err):
		return fmt.Errorf("%w: %w", ErrDaemon, err)
	}
	return fmt.Errorf("%w: %w", ErrRegistry, err)
}

// repository is a source at a registry.
type repository struct {
	*Registry
	spec reference.Spec
}

func (r repository) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	// One more byte than there should be: it shows that there are too many.
	ctx, t := withTransfer(ctx, desc.Size+1)
	rc, err := r.fetch(ctx, desc)
	if err != nil {
		return nil, r.explain(err)
	}
	return explained{rc, r, t}, nil
}

// fetch begins a transfer, from a host that served nothing wrong if there is one.
func (r repository) fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	fetcher, err := r.resolver.Fetcher(ctx, r.spec.String())
	if err != nil {
		return nil, err
	}
	return fetcher.Fetch(ctx, desc)
}

// moveOn says that what came in this transfer was wrong, and reports whether
// another host has not been tried.
func (r repository) moveOn(t *transfer) bool { return r.wire.moveOn(r.spec.Hostname(), t.host) }

// explained adds the class to errors that show only when a body is read.
type explained struct {
	io.ReadCloser
	r repository
	t *transfer
}

func (e explained) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = e.r.explain(err)
	}
	return n, err
}

func (e explained) elsewhere() bool { return e.r.moveOn(e.t) }

// referrers asks the referrers API and, where a registry has none, the tag that
// stands in for it. An API that is there and gives no list is errWithheld, unless there
// is something under the tag.
func (r repository) referrers(ctx context.Context, image digest.Digest) ([]ocispec.Descriptor, error) {
	fetcher, err := r.resolver.Fetcher(ctx, r.spec.String())
	if err != nil {
		return nil, r.explain(err)
	}
	asker, ok := fetcher.(remotes.ReferrersFetcher)
	if !ok {
		return nil, fmt.Errorf("%w: its client cannot ask for referrers", ErrRegistry)
	}
	ctx, t := withTransfer(ctx, osimage.MaxManifest)
	list, err := asker.FetchReferrers(ctx, image)
	if err != nil {
		return nil, r.explain(err)
	}
	if len(list) == 0 && t.withheld != nil {
		return nil, r.wire.scrub(fmt.Errorf("%w: %w: %w", ErrRegistry, errWithheld, t.withheld))
	}
	for i := range list {
		list[i] = asManifest(list[i])
	}
	return list, nil
}
