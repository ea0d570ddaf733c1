package publish

import (
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/trust"
)

// BenchmarkVerifyFromRegistry is the processor time of all that verification by key adds
// to an upgrade: finding the signatures beside an image and reading them, over HTTP, and
// the decision. The registry is in the same process, so its share is in the figure too.
func BenchmarkVerifyFromRegistry(b *testing.B) {
	for form, bundle := range map[string]bool{"classic": false, "bundle": true} {
		reg, key, o := newRegistry(b, registry.WithReferrersSupport(true)), testKey(b), quick()
		if _, err := Push(b.Context(), threePacks(b), reg.ref(":1.1"), o); err != nil {
			b.Fatal(err)
		}
		o.Bundle = bundle
		if _, err := Sign(b.Context(), reg.ref(":1.1"), key, o); err != nil {
			b.Fatal(err)
		}
		v, err := trust.New(publicOf(b, key))
		if err != nil {
			b.Fatal(err)
		}
		store, err := fetch.OpenStore(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { store.Close() })
		ref, err := fetch.NewRegistry(b.Context(), store, b.TempDir()).Resolve(b.Context(), reg.ref(":1.1"))
		if err != nil {
			b.Fatal(err)
		}
		ref = ref.For(v)
		img, err := ref.Describe(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.Run(form, func(b *testing.B) {
			begin := processor(b)
			for b.Loop() {
				sigs, err := ref.Signatures(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := v.Verify(b.Context(), img, sigs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processor(b)-begin)/float64(b.N)/float64(time.Millisecond), "cpu-ms/op")
		})
	}
}

// processor is the time that this process has had on processors.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
