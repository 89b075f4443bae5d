# Puts the age identity of this TPM at /seed/tpm/age-identity: the host's word, or what the TPM remembers, or a new one.
identity=/seed/tpm/age-identity
# In the range that the specification leaves to owners.
index=0x01800a9e

umask 077
mkdir -p "${identity%/*}"
if [ -s "${CREDENTIALS_DIRECTORY-}/seed.age-identity" ]; then
  cp "$CREDENTIALS_DIRECTORY/seed.age-identity" "$identity.new"
elif tpm2_nvread -C o "$index" -o "$identity.new" 2>/dev/null && [ -s "$identity.new" ]; then
  :
else
  age-plugin-tpm --generate >"$identity.full"
  # Without its comments: there is room for two thousand bytes.
  grep '^AGE-PLUGIN-TPM-' "$identity.full" >"$identity.new"
  # There may be one that was not written to: a machine can be stopped between the two.
  tpm2_nvundefine -C o "$index" 2>/dev/null || true
  tpm2_nvdefine -C o "$index" -s "$(wc -c <"$identity.new")" -a 'ownerread|ownerwrite' >/dev/null
  tpm2_nvwrite -C o "$index" -i "$identity.new"
  rm "$identity.full"
fi
mv "$identity.new" "$identity"
echo "age recipient of this instance: $(age-plugin-tpm --convert "$identity")"
