package osimage

import (
	"slices"
	"strings"
)

// PackageChange is a package that two images differ in. From or To is empty where the
// image does not have it. A package that is installed more than once, for several
// architectures, has its versions with commas between.
type PackageChange struct {
	Name string `json:"name"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// ComparePackages lists what differs between two lists of packages, by name. It orders
// no versions: package managers do that in their own ways.
func ComparePackages(from, to []Package) []PackageChange {
	old, now := versions(from), versions(to)
	var list []PackageChange
	for name, v := range old {
		if v != now[name] {
			list = append(list, PackageChange{name, v, now[name]})
		}
	}
	for name, v := range now {
		if _, there := old[name]; !there {
			list = append(list, PackageChange{name, "", v})
		}
	}
	slices.SortFunc(list, func(a, b PackageChange) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func versions(list []Package) map[string]string {
	all := map[string][]string{}
	for _, p := range list {
		if !slices.Contains(all[p.Name], p.Version) {
			all[p.Name] = append(all[p.Name], p.Version)
		}
	}
	joined := map[string]string{}
	for name, v := range all {
		slices.Sort(v)
		joined[name] = strings.Join(v, ", ")
	}
	return joined
}
