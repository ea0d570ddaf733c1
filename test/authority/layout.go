package authority

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MediaTypeBundle is that of the bundles that this package makes.
const MediaTypeBundle = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Attach puts a bundle beside the first image of an OCI layout, in its index, as
// cosign puts it into a registry.
func Attach(t testing.TB, dir, predicateType string, bundle []byte) {
	t.Helper()
	index := readIndex(t, dir)
	d := bundleManifest(t, dir, index.Manifests[0], predicateType, bundle)
	d.ArtifactType = MediaTypeBundle
	addEntry(t, dir, index, d)
}

// AttachListed does so in an index under the tag that stands in for the referrers API.
func AttachListed(t testing.TB, dir, predicateType string, bundle []byte) {
	t.Helper()
	index := readIndex(t, dir)
	image := index.Manifests[0].Digest
	raw, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{bundleManifest(t, dir, index.Manifests[0], predicateType, bundle)},
	})
	if err != nil {
		t.Fatal(err)
	}
	d := blob(t, dir, ocispec.MediaTypeImageIndex, raw)
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "sha256-" + image.Encoded()}
	addEntry(t, dir, index, d)
}

func bundleManifest(t testing.TB, dir string, image ocispec.Descriptor, predicateType string, bundle []byte) ocispec.Descriptor {
	t.Helper()
	return manifest(t, dir, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: MediaTypeBundle,
		Config:      blob(t, dir, ocispec.MediaTypeEmptyJSON, []byte("{}")),
		Layers:      []ocispec.Descriptor{blob(t, dir, MediaTypeBundle, bundle)},
		Subject:     &ocispec.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size},
		Annotations: map[string]string{"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": predicateType},
	})
}

// AttachClassic puts a layer under a tag of cosign's beside the image.
func AttachClassic(t testing.TB, dir, tag, mediaType string, payload []byte, annotations map[string]string) {
	t.Helper()
	layer := blob(t, dir, mediaType, payload)
	layer.Annotations = annotations
	config := blob(t, dir, ocispec.MediaTypeImageConfig, []byte(`{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":["`+layer.Digest.String()+`"]}}`))
	d := manifest(t, dir, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer},
	})
	d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	addEntry(t, dir, readIndex(t, dir), d)
}

func readIndex(t testing.TB, dir string) ocispec.Index {
	t.Helper()
	var index ocispec.Index
	raw, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err == nil {
		err = json.Unmarshal(raw, &index)
	}
	if err != nil || len(index.Manifests) == 0 {
		t.Fatalf("the index of %s: %v", dir, err)
	}
	return index
}

func manifest(t testing.TB, dir string, m ocispec.Manifest) ocispec.Descriptor {
	t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return blob(t, dir, ocispec.MediaTypeImageManifest, raw)
}

func addEntry(t testing.TB, dir string, index ocispec.Index, entry ocispec.Descriptor) {
	t.Helper()
	index.Manifests = append(index.Manifests, entry)
	raw, err := json.Marshal(index)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func blob(t testing.TB, dir, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	d := digest.FromBytes(data)
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageBlobsDir, "sha256", d.Encoded()), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}
