// Package config reads the configuration file of overlayd: strict YAML into one typed struct, checked once.
//
// Nothing is passed over: an unknown key, a key that is there twice, a value of the wrong kind and a value
// that cannot work are each an *Error with the line of the file, or the flag, that it comes from, and with
// what to do about it. What can only be known by trying (a device or port that is taken, no route to a peer)
// is left to the VTEP, and Config.At gives its complaints their line.
//
// Decoding is by the `yaml` tags of Config: decode.go walks the YAML nodes itself, because yaml.v3 neither
// keeps the lines of what it has decoded nor takes unknown keys one at a time. check.go and network.go hold
// the rules.
//
// Concurrency: a *Config is not changed after Load and may be read by many goroutines. There are no
// goroutines here. The package must not import controlplane.
package config
