package trust_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/test/authority"
)

// processor is the time that this process has had on processors.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkVerify is the processor time of one decision, by the way it is made. The
// time on the wall says nothing on a busy machine.
func BenchmarkVerify(b *testing.B) {
	img, ours, a := image(b, "1.1"), ecdsaPair(b), authority.New(b)
	s := a.Certify(workflow, authority.Issuer, signing)
	stranger := ecdsaPair(b)
	var many []osimage.Signature
	for range osimage.MaxSignatures {
		many = append(many, stranger.signBundle(b, img))
	}
	for _, way := range []struct {
		name string
		v    *trust.Verifier
		sigs []osimage.Signature
	}{
		{"classic by key", verifier(b, ours), []osimage.Signature{ours.sign(b, payloadFor(img.Digest()))}},
		{"bundle by key", verifier(b, ours), []osimage.Signature{ours.signBundle(b, img)}},
		{"bundle by identity", identityVerifier(b, releaser(a)), []osimage.Signature{bundled(s, img, authority.Choice{})}},
		{"100 bundles by a stranger", verifier(b, ours), many},
	} {
		b.Run(way.name, func(b *testing.B) {
			begin := processor(b)
			for b.Loop() {
				_, _ = way.v.Verify(b.Context(), img, way.sigs)
			}
			b.ReportMetric(float64(processor(b)-begin)/float64(b.N)/float64(time.Millisecond), "cpu-ms/op")
		})
	}
}
