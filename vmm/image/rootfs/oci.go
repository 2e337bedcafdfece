package rootfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// MaxLayers bounds the layers of an image.
	MaxLayers = 512
	// MaxJSON bounds an index, a manifest and a configuration, in bytes.
	MaxJSON = 4 << 20

	maxIndexing = 3 // indexes of indexes
)

// Platform chooses the image among those of several platforms.
var Platform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// Image is the image of a container: its configuration and its layers, the lowest first.
type Image struct {
	Digest string // of its manifest, or of its configuration if it has no manifest
	Config *Config
	Layers []*Layer
}

// Check refuses an image for another platform and one whose configuration does not fit its layers.
// It sets the layers' DiffIDs.
func (i *Image) Check() error {
	system, arch := i.Config.OS, i.Config.Architecture
	if system != "" && system != Platform.OS || arch != "" && arch != Platform.Architecture {
		return fmt.Errorf("it is for %.20s/%.20s, this host needs %s", system, arch, Platform.String())
	}
	if len(i.Layers) == 0 || len(i.Layers) > MaxLayers {
		return fmt.Errorf("it has %d layers, 1 to %d are possible", len(i.Layers), MaxLayers)
	}
	ids := i.Config.RootFS.DiffIDs
	if len(ids) != len(i.Layers) {
		return fmt.Errorf("its configuration lists %d layers, it has %d", len(ids), len(i.Layers))
	}
	for n, l := range i.Layers {
		l.DiffID = ids[n].String()
	}
	return nil
}

// OCI returns the image of an OCI image layout (image-spec, image-layout.md).
func (a *Archive) OCI() (*Image, error) {
	index, err := a.read("index.json")
	if err != nil {
		return nil, fmt.Errorf("not an OCI image layout: %w", err)
	}
	m, digest, err := a.manifest(index, 0)
	if err != nil {
		return nil, err
	}
	config, err := a.blob(&m.Config)
	if err != nil {
		return nil, err
	}
	i := &Image{Digest: digest}
	if i.Config, err = ParseConfig(config); err != nil {
		return nil, err
	}
	for _, d := range m.Layers {
		l, err := a.layer(blobPath(d.Digest), d.Digest.String())
		if err != nil {
			return nil, err
		}
		i.Layers = append(i.Layers, l)
	}
	return i, nil
}

// manifest returns the manifest, and its digest, of the one image for Platform in an index.
func (a *Archive) manifest(index []byte, depth int) (*v1.Manifest, string, error) {
	list, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return nil, "", fmt.Errorf("its index cannot be read: %w", err)
	}
	var fit []v1.Descriptor
	for _, d := range list.Manifests {
		if d.Platform == nil || d.Platform.Satisfies(Platform) || d.MediaType.IsIndex() {
			fit = append(fit, d)
		}
	}
	switch {
	case len(fit) == 0:
		return nil, "", fmt.Errorf("it has no image for %s", Platform.String())
	case len(fit) > 1:
		return nil, "", fmt.Errorf("it has %d images that fit; give one that has one", len(fit))
	}
	d := fit[0]
	b, err := a.blob(&d)
	if err != nil {
		return nil, "", err
	}
	switch {
	case d.MediaType.IsIndex() && depth < maxIndexing:
		return a.manifest(b, depth+1)
	case d.MediaType != types.OCIManifestSchema1 && d.MediaType != types.DockerManifestSchema2:
		return nil, "", fmt.Errorf("its image is a %.100q, which is not understood", d.MediaType)
	}
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, "", fmt.Errorf("its manifest cannot be read: %w", err)
	}
	return m, d.Digest.String(), nil
}

// Docker returns the image of an archive of `docker save`. Its manifest.json names the
// configuration and the layers.
func (a *Archive) Docker() (*Image, error) {
	b, err := a.read("manifest.json")
	if err != nil {
		return nil, fmt.Errorf("not an archive of docker save: %w", err)
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(b, &images); err != nil {
		return nil, fmt.Errorf("its manifest.json cannot be read: %w", err)
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("it has %d images; give one that has one", len(images))
	}
	name := images[0].Config
	if name == "" {
		return nil, errors.New("its manifest.json names no configuration")
	}
	config, err := a.read(name)
	if err != nil {
		return nil, err
	}
	i := &Image{Digest: Sum(config)}
	// Its name is its digest: HEX.json, blobs/sha256/HEX, or sha256:HEX from crane.
	hex := strings.TrimPrefix(strings.TrimSuffix(path.Base(name), ".json"), "sha256:")
	if "sha256:"+hex != i.Digest {
		return nil, fmt.Errorf("it is damaged: configuration %.100q has the digest %s", name, i.Digest)
	}
	if i.Config, err = ParseConfig(config); err != nil {
		return nil, err
	}
	for _, name := range images[0].Layers {
		l, err := a.layer(name, "")
		if err != nil {
			return nil, err
		}
		i.Layers = append(i.Layers, l)
	}
	return i, nil
}
