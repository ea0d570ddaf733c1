package osimage

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// holdsTogether checks what later stages rely on without looking again.
func holdsTogether(t *testing.T, img Image) {
	t.Helper()
	r := img.Config().Rootfs
	if !img.Valid() || len(img.Packs()) != len(r.PackSegments) || len(r.SegmentDigests) != 32*r.Segments() {
		t.Fatal("accepted an image that does not hold together")
	}
	var size int64
	for i := range r.Segments() {
		if n := r.SegmentLength(i); n <= 0 || n > SegmentSize {
			t.Fatalf("segment %d has %d bytes", i, n)
		}
		size += int64(r.SegmentLength(i))
	}
	if size != r.Size || size > MaxImage {
		t.Fatalf("the segments have %d bytes, the image %d", size, r.Size)
	}
	if n := img.CompressedSize(); n <= 0 || n > packLimit(r.Segments()) {
		t.Fatalf("the packs of %d segments have %d bytes", r.Segments(), n)
	}
}

func FuzzParse(f *testing.F) {
	_, raw, config := sample(f, nil)
	f.Add(raw, config)
	f.Add(bytes.Replace(raw, []byte(`"layers":[`), []byte(`"layers":[{},`), 1), config)
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageIndex+`","manifests":[{}`+strings.Repeat(",{}", 1000)+`]}`), config)
	f.Add([]byte(strings.Repeat("[", 20_000)), []byte(strings.Repeat(`{"a":`, 20_000)))
	f.Fuzz(func(t *testing.T, raw, config []byte) {
		img, err := Parse(ocispec.Descriptor{Digest: digest.FromBytes(raw)}, raw, config)
		if err == nil {
			holdsTogether(t, img)
		} else if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNotOS) {
			t.Errorf("an error without a class: %v", err)
		}
	})
}

// FuzzConfig gives each config a manifest that names it, so that the digests do not
// keep the fuzzer out.
func FuzzConfig(f *testing.F) {
	_, _, config := sample(f, nil)
	f.Add(config, int64(99), uint8(1))
	for _, size := range []string{"2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e300"} {
		f.Add(bytes.Replace(config, []byte(`"size":1052672`), []byte(`"size":`+size), 1), int64(99), uint8(1))
		f.Add(bytes.Replace(config, []byte(`"packSegments":[2]`), []byte(`"packSegments":[`+size+`]`), 1), int64(1<<63-1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, config []byte, size int64, packs uint8) {
		layers := slices.Repeat([]ocispec.Descriptor{{MediaType: MediaTypePack, Digest: digest.FromString("p"), Size: size}}, int(packs))
		raw, desc, err := Manifest(ocispec.Descriptor{MediaType: MediaTypeConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}, layers, nil)
		if err != nil {
			t.Fatal(err)
		}
		img, err := Parse(desc, raw, config)
		if err == nil {
			holdsTogether(t, img)
		} else if !errors.Is(err, ErrInvalid) {
			t.Errorf("an error without a class: %v", err)
		}
	})
}

func FuzzSignatureLayers(f *testing.F) {
	layer := ocispec.Descriptor{MediaType: MediaTypeSignature, Digest: digest.FromString("s"), Size: 200}
	for _, n := range []int{0, 1, MaxSignatures, MaxSignatures + 1} {
		raw, err := json.Marshal(ocispec.Manifest{Layers: slices.Repeat([]ocispec.Descriptor{layer}, n)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"layers":[{"mediaType":"` + MediaTypeSignature + `","size":-1,"digest":"` + layer.Digest.String() + `"}]}`))
	f.Add([]byte(`{"layers":[{"mediaType":"` + MediaTypeEnvelope + `","size":70000,"digest":"` + layer.Digest.String() + `","annotations":{"predicateType":"` + PredicateSPDX + `"}}]}`))
	f.Add([]byte(`{"annotations":{"` + PredicateAnnotation + `":"` + PredicateSPDX + `"},"layers":[{"mediaType":"` + bundlePrefix + `.v0.3+json","size":99999999,"digest":"` + layer.Digest.String() + `"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		layers, err := SignatureLayers(raw, Attestations())
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("an error without a class: %v", err)
		}
		if len(layers) > MaxSignatures {
			t.Errorf("%d signatures", len(layers))
		}
		for _, l := range layers {
			limit := int64(MaxPayload)
			if l.Form != Classic {
				limit = MaxAttestation
			}
			if !l.Oversize && (l.Size < 0 || l.Size > limit) || checkDigest(l.Digest) != nil {
				t.Errorf("accepted %+v", l)
			}
		}
	})
}

// FuzzCompareVersions holds that versions have one order, whatever they look like:
// the floor against downgrades stands on it.
func FuzzCompareVersions(f *testing.F) {
	f.Add("1.2", "1.10", "1.2.0-rc1")
	f.Add("1.0.0-2", "1.0.0-10", "1.0.0-a")
	f.Add("9223372036854775807", "9223372036854775808", "0")
	f.Add("v1", "1", "1+build")
	f.Add("1", "1.0.0.0-10", "1.0-0-a")
	f.Add("1.0-01", "1.0-1", "1.0-00.a")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, err := CompareVersions(a, b)
		ba, err2 := CompareVersions(b, a)
		bc, err3 := CompareVersions(b, c)
		ac, err4 := CompareVersions(a, c)
		if errors.Join(err, err2, err3, err4) != nil {
			return
		}
		if ab != -ba {
			t.Errorf("%q to %q is %d, and back %d", a, b, ab, ba)
		}
		if ab <= 0 && bc <= 0 && ac > 0 {
			t.Errorf("%q, %q and %q have no order", a, b, c)
		}
	})
}
